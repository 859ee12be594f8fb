"""Two pretrained towers become one dual encoder: both stay as they are, and a linear projection behind each is trained.

What the towers make of every photograph and caption is computed once. Written is what open_clip calls a CustomTextCLIP: a timm
image tower and a Hugging Face text tower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CustomTextCLIP
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ease_flwr.config import ConfigError, ModelConfig
from ease_flwr.data.entries import Entry
from ease_flwr.data.formats import read_entries
from ease_flwr.model import backbone, retrieval, tokens, towers
from ease_flwr.store.files import write_json

BATCH, LR, HOTTEST = 256, 1e-3, 100.0
AT_ONCE = 64
"""Photographs, or captions, that go through a tower together."""


@dataclass(frozen=True)
class Towers:
    """What is put together."""

    image: Path
    """A .safetensors file of a timm model without its classifier."""
    image_model: str
    """timm's name of it."""
    text: Path
    """Folder of a Hugging Face text model with its tokenizer."""
    size: int
    """Side of the photographs in pixels."""
    width: int
    """Dimension of the embeddings."""
    context: int
    """Tokens of a caption, at most."""

    @property
    def architecture(self) -> dict[str, Any]:
        """What open_clip builds the model from. The weights are in the checkpoint; the folder says how the text tower is built,
        and has the tokenizer."""
        folder = str(self.text.absolute())
        return {
            "embed_dim": self.width,
            "vision_cfg": {
                "timm_model_name": self.image_model,
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": self.size,
            },
            "text_cfg": {
                "hf_model_name": folder,
                "hf_tokenizer_name": folder,
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "linear",
                "context_length": self.context,
            },
        }


def align(parts: Towers, root: Path, split: str, to: Path, schedule: tuple[int, int], say: Callable[[str], None]) -> float:
    """Train the projections on a split of the photographs in `root`, and write the model to `to`, its config beside it.

    schedule: the seed, and how many epochs. Returns R@1 in percent of the *written* model on the test split, the mean of both
    directions. Raises ConfigError.
    """
    by_split: dict[str, list[Entry]] = {}
    for entry in read_entries(str(root.absolute())):
        by_split.setdefault(entry.split, []).append(entry)
    for wanted in (split, "test"):
        if not by_split.get(wanted):
            raise ConfigError(f"{root}: no photograph of split {wanted!r}; there are {', '.join(sorted(by_split))}")
    model, mean, std = built(parts)
    base = backbone.Backbone(
        model, tokens.of_model(parts.architecture, model.text.vocab_size), parts.size, mean, std, parts.architecture
    )
    with _without_projections(model) as (visual, text):
        images, texts, owner = embed(base, by_split[split], say)
    _train((images, texts, owner), (visual, text, model.logit_scale), schedule, say)
    about = {"format": "pt", "image_mean": str(mean), "image_std": str(std)}
    partial = to.with_name(f"{to.name}.partial")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial, about)
    write_json(to.with_suffix(".json"), parts.architecture)
    partial.replace(to)
    say(f"written: {to}, {to.with_suffix('.json').name}; use it with model.mean={list(mean)} model.std={list(std)}")
    written = backbone.load(ModelConfig(weights=str(to.absolute()), mean=mean, std=std))
    return recall(written, by_split["test"], say)


def built(parts: Towers) -> tuple[CustomTextCLIP, tuple[float, float, float], tuple[float, float, float]]:
    """Both towers with their weights, new projections behind them, and the mean and spread that timm has the images
    normalised by. Raises ConfigError."""
    if not find_spec("transformers"):
        raise ConfigError("a Hugging Face text tower needs transformers: pip install 'ease-flwr[towers]'")
    import timm
    from transformers.utils import logging

    said: Any = logging
    said.set_verbosity_error()
    said.disable_progress_bar()
    if not timm.is_model(parts.image_model):
        raise ConfigError(f"--image-model: timm knows no {parts.image_model!r}; see timm.list_models()")
    if not (parts.text / "config.json").is_file():
        raise ConfigError(f"--text {parts.text}: no config.json there: give the folder of a Hugging Face text model")
    try:
        model = CustomTextCLIP(**parts.architecture).float().eval().requires_grad_(False)
        model.visual.trunk.load_state_dict({k: v.float() for k, v in load_file(parts.image).items()})
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(f"these towers cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    cfg: Any = model.visual.trunk.pretrained_cfg
    return model, tuple(cfg["mean"]), tuple(cfg["std"])


@contextmanager
def _without_projections(model: CustomTextCLIP) -> Iterator[tuple[nn.Linear, nn.Linear]]:
    """The two projections, while the model's encoders return what comes before them."""
    visual, text = model.visual.head, model.text.proj
    model.visual.head = model.text.proj = nn.Identity()
    yield visual.proj, text
    model.visual.head, model.text.proj = visual, text


@torch.no_grad()
def embed(base: backbone.Backbone, entries: list[Entry], say: Callable[[str], None]) -> tuple[Tensor, Tensor, Tensor]:
    """What the encoders make of photographs (n, d) and of their captions (m, e), and the photograph of each caption (m,)."""
    images = []
    for i in range(0, len(entries), AT_ONCE):
        pictures = np.stack([e.image(base.image_size) for e in entries[i : i + AT_ONCE]])
        images.append(base.model.encode_image(base.normalise(pictures)))
    say(f"{len(entries)} photographs encoded")
    tokens = base.tokenize([c for e in entries for c in e.captions])
    order = tokens.ne(0).sum(1).argsort(stable=True)  # captions of about one length go together, without their padding
    cut = towers.without_padding if towers.shorten(base) else nn.Identity()
    texts = torch.cat([base.model.encode_text(cut(tokens[some])) for some in order.split(AT_ONCE)])
    say(f"{len(tokens)} captions encoded")
    owner = torch.tensor([i for i, e in enumerate(entries) for _ in e.captions])
    return torch.cat(images), texts[order.argsort()], owner


def _train(
    data: tuple[Tensor, Tensor, Tensor],
    trained: tuple[nn.Linear, nn.Linear, nn.Parameter],
    schedule: tuple[int, int],
    say: Callable[[str], None],
) -> None:
    """Symmetric InfoNCE of each photograph and one of its captions, drawn anew in every epoch."""
    images, texts, owner = data
    visual, text, logit_scale = trained
    seed, epochs = schedule
    draw = torch.Generator().manual_seed(seed)
    parameters = [visual.weight, text.weight, logit_scale]
    for weight in parameters[:2]:
        weight.data = torch.randn(weight.shape, generator=draw) / math.sqrt(weight.shape[1])
    for parameter in parameters:
        parameter.requires_grad_(True)
    counts = torch.bincount(owner)
    first = counts.cumsum(0) - counts
    steps = math.ceil(len(images) / BATCH)
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.1)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * steps + 1)
    for epoch in range(1, epochs + 1):
        order, total = torch.randperm(len(images), generator=draw), 0.0
        captions = first + (torch.rand(len(images), generator=draw) * counts).long()
        for index in order.split(BATCH):
            f = F.normalize(visual(images[index]), dim=-1)
            g = F.normalize(text(texts[captions[index]]), dim=-1)
            none = f[:0]
            loss = retrieval.partner_cross_entropy(f, g, none, none, logit_scale.exp()).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rates.step()
            logit_scale.data.clamp_(max=math.log(HOTTEST))
            total += loss.item()
        if epoch % math.ceil(epochs / 10) == 0 or epoch == epochs:
            say(f"epoch {epoch}/{epochs}  loss {total / steps:.3f}")
    for parameter in parameters:
        parameter.requires_grad_(False)


def recall(base: backbone.Backbone, entries: list[Entry], say: Callable[[str], None]) -> float:
    """R@1 in percent, the mean of both directions, with these photographs and all their captions as gallery."""
    images, texts, owner = embed(base, entries, say)
    everybody = torch.arange(len(images))
    found = retrieval.ranks(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), owner, everybody * 0, everybody)
    return 50 * sum(float((r == 1).float().mean()) for r in found)
