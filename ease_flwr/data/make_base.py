"""Train the small dual encoder of the built-in world on base scenes: what a pretrained CLIP is to photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from torch.nn import functional as F

from ease_flwr.data import drawing, wording
from ease_flwr.data.pairs import Pairs
from ease_flwr.model import backbone

CONTEXT = 18  # the longest caption has 16 words
CONFIG: dict[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": drawing.SIZE, "layers": 3, "width": 96, "patch_size": 16, "head_width": 32},
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": len(wording.VOCABULARY),
        "width": 96,
        "heads": 3,
        "layers": 2,
    },
}
IMAGE = {"size": drawing.SIZE, "mean": (0.45, 0.45, 0.45), "std": (0.27, 0.27, 0.27)}
BATCH, LR = 256, 2e-3


def make_base(path: Path, seed: int, scenes: int, epochs: int, progress: Callable[[str], None]) -> float:
    """Train by symmetric InfoNCE on `scenes` base scenes and write the model to `path`.

    Returns the R@1 in percent (mean of both directions) of the *written* model on 500 scenes it never saw. The names of
    personas take no part; afterwards their token embeddings are drawn at random with the spread of the trained ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**CONFIG)
        generator = torch.Generator().manual_seed(seed)
        tokenize = backbone.WordTokenizer(wording.VOCABULARY, CONTEXT)
        unready = backbone.Backbone(model, tokenize, drawing.SIZE, IMAGE["mean"], IMAGE["std"], CONFIG)  # type: ignore[arg-type]
        pairs = drawing.scenes(scenes, (seed, 100), companions=0.25) + acquaintances(scenes // 2, (seed, 102))
        images, texts = unready.normalise(pairs.images), tokenize([c[0] for c in pairs.captions])
        steps = len(pairs) // BATCH
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * steps + 1)
        for epoch in range(epochs):
            order = torch.randperm(len(pairs), generator=generator)
            total = 0.0
            for index in order[: steps * BATCH].split(BATCH):
                a = model.encode_image(images[index], normalize=True)
                b = model.encode_text(texts[index], normalize=True)
                logits = model.logit_scale.exp().clamp(max=60) * a @ b.T
                target = torch.arange(len(index))
                loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
            progress(f"epoch {epoch + 1}/{epochs}  loss {total / steps:.3f}")
        with torch.no_grad():
            embedding = model.token_embedding.weight
            rows = [wording.VOCABULARY.index(n) for n in wording.NAMES]
            spread = embedding[[wording.VOCABULARY.index(w) for w in wording.WORDS]].std()
            embedding[rows] = torch.randn(len(rows), embedding.shape[1], generator=generator) * spread
            model.logit_scale.clamp_(max=float(np.log(60)))
    backbone.write_base(path, model, CONFIG, wording.VOCABULARY, IMAGE)
    return scene_recall(backbone.read_base(path), drawing.scenes(500, (seed, 101)))


def acquaintances(count: int, seed: tuple[int, ...]) -> Pairs:
    """`count` pairs about people whom the base model knows: their looks are two shapes. Half of the captions name them, the
    others say how they look; backgrounds and phrasings are those of all splits."""
    rng = np.random.default_rng(seed)
    looks = dict(zip(wording.ACQUAINTANCES, drawing.unlike(len(wording.ACQUAINTANCES), rng), strict=True))
    templates = [t for of_split in wording.TEMPLATES.values() for t in of_split]
    images, captions = [], []
    for _ in range(count):
        name, background = str(rng.choice(wording.ACQUAINTANCES)), str(rng.choice([*drawing.BACKGROUNDS]))
        images.append(drawing.draw(looks[name], background, rng))
        who = name if rng.random() < 0.5 else looks[name]
        captions.append((str(rng.choice(templates)).format(who=who, background=background),))
    return Pairs(np.stack(images), tuple(captions), ("",) * count)


@torch.no_grad()
def scene_recall(base: backbone.Backbone, pairs: Pairs) -> float:
    """R@1 in percent, mean of both directions, with these pairs as gallery."""
    model = base.model.eval()
    a = model.encode_image(base.normalise(pairs.images), normalize=True)
    b = model.encode_text(base.tokenize([c[0] for c in pairs.captions]), normalize=True)
    target = torch.arange(len(pairs))
    similarity = a @ b.T
    hits = (similarity.argmax(1) == target).float().mean() + (similarity.argmax(0) == target).float().mean()
    return 50 * float(hits)
