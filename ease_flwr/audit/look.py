"""Look for yourself: what a search finds before, after and under retraining. Only where the pictures are: in a simulation."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ease_flwr import data
from ease_flwr.audit.summary import read_results
from ease_flwr.clients.base import LoraClient
from ease_flwr.config import Experiment, union
from ease_flwr.config import pictures as pictures_of
from ease_flwr.model import adapters
from ease_flwr.store import purge, queue
from ease_flwr.store.layout import RunLayout

MODELS = ("original", "unlearned", "retrain")
TOP = 5


@dataclass
class Pictures:
    """Every picture once: its number names a style of the page."""

    sources: list[str] = field(default_factory=list)
    known: dict[bytes, int] = field(default_factory=dict)

    def add(self, image: Any, side: int = 64) -> int:
        """Number of a picture, uint8 (height, width, 3)."""
        out = io.BytesIO()
        Image.fromarray(image).resize((side, side)).save(out, "PNG")
        key = out.getvalue()
        if key not in self.known:
            self.known[key] = len(self.sources)
            self.sources.append("data:image/png;base64," + base64.b64encode(key).decode())
        return self.known[key]


@dataclass(frozen=True)
class Card:
    """One pair, and what each model finds for its caption and for its image: (model, [(what, right), ...])."""

    set: str
    client: str
    caption: str
    picture: int
    images: list[tuple[str, list[tuple[int, bool]]]]
    captions: list[tuple[str, list[tuple[str, bool]]]]


def look(folder: Path, experiment: Experiment, pictures: Pictures, count: int = 12) -> list[Card]:
    """A dozen pairs of what is forgotten and of what is kept, evenly chosen, within their own galleries."""
    world = data.load(pictures_of(experiment), experiment.seed)
    forget = union(request for _, request in queue.served(folder))
    model = adapters.load(experiment.model, experiment.lora, experiment.seed)
    there = purge.left(folder, read_results(folder)["models"])
    names = [m for m in MODELS if m in there]
    thetas = {m: adapters.read(RunLayout(folder).adapters / m, model.blocks) for m in names}
    cards: list[Card] = []
    for sets in (("forget_exclusive", "forget"), ("retain",)):
        owners = []
        for name in world.clients:
            client = LoraClient(experiment, name, world, Nothing())
            found = client.data.evaluation("test", forget)
            owners += [(client, found[s], s) for s in [s for s in sets if s in found][:1]]
        for k in range(count if owners else 0):
            client, chosen, name = owners[k % len(owners)]
            query = int(chosen.query[(k * len(chosen.query)) // count])
            cards.append(_card(client, chosen.gallery, query, name, thetas, pictures))
    return cards


class Nothing:
    """A client's state that keeps nothing."""

    def load(self, name: str) -> None:
        return None

    def save(self, name: str, value: Any) -> None:
        pass


def _card(client: LoraClient, gallery: Any, query: int, name: str, thetas: dict[str, Any], pictures: Pictures) -> Card:
    pairs, rows = gallery.pairs, np.flatnonzero(gallery.group == gallery.group[query])
    images_found, captions_found = [], []
    for model, theta in thetas.items():
        client.model.set(theta)
        images, texts, owner = client.embedded(pairs, theta)
        first = torch.searchsorted(owner, torch.arange(len(pairs)))
        f, g = images[torch.from_numpy(rows)], texts[first[torch.from_numpy(rows)]]
        own = int(np.flatnonzero(rows == query)[0])
        best = (f @ g[own]).topk(min(TOP, len(rows))).indices.tolist()
        images_found.append((model, [(pictures.add(pairs.images[rows[i]]), i == own) for i in best]))
        best = (g @ f[own]).topk(min(TOP, len(rows))).indices.tolist()
        captions_found.append((model, [(pairs.captions[rows[i]][0], i == own) for i in best]))
    return Card(name, client.name, pairs.captions[query][0], pictures.add(pairs.images[query]), images_found, captions_found)
