"""Search with the models of a run, side by side: among pairs that this machine owns."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ease_flwr import config, data
from ease_flwr.audit.summary import read_results, read_run_config
from ease_flwr.config import ConfigError, union
from ease_flwr.data.pairs import Pairs
from ease_flwr.store import queue

ORDER = ("forget_exclusive", "forget", "forget_shared", "retain", "test")
"""Sets of pairs that are searched. A pair belongs to the first that has it."""
EXAMPLES = 6
"""Pairs of each set that the page offers."""


@dataclass(frozen=True)
class Gallery:
    """Pairs that are searched, and the set that each belongs to."""

    pairs: Pairs
    sets: tuple[str, ...]

    def examples(self) -> list[int]:
        """Some pairs of each set, evenly chosen."""
        by_set = {name: [i for i, s in enumerate(self.sets) if s == name] for name in dict.fromkeys(self.sets)}
        return [i for found in by_set.values() for i in _evenly(found, EXAMPLES)]


@dataclass(frozen=True)
class Own:
    """Which pairs of this machine are searched."""

    root: str = ""
    """Folder of pairs in place of `data.root`."""
    client: str = ""
    """Whose pairs these are, where clients are hosts; "": all clients of a simulation."""
    most: int = 1000
    """So many pairs at most, evenly chosen among the sets."""


def gallery(folder: Path, own: Own) -> Gallery:
    """Test pairs of all clients whose data are on this machine, each once. Raises ConfigError where it owns none."""
    experiment, _ = config.from_run_config(read_run_config(folder))
    settings = config.pictures(experiment).model_copy(update={"root": own.root} if own.root else {})
    world = data.load(settings, experiment.seed)
    if own.root and settings.kind == "personas":
        raise ConfigError(f"--data {own.root}: this run's pairs are drawn, and need no folder: leave it out")
    if own.client not in ("", *world.clients):
        raise ConfigError(f"--client {own.client}: no client of this run: {config.among(own.client, world.clients)}")
    if settings.kind == "folder" and not (own.root and own.client):
        raise ConfigError(
            f"{folder}: its pairs are on the hosts, and there are none to search here: give the folder of a host with --data, "
            "and the name of its client with --client"
        )
    forget = union(request for _, request in queue.served(folder))
    found: dict[bytes, tuple[str, Pairs, int]] = {}
    several = [world.client(name).evaluation("test", forget) for name in ([own.client] if own.client else world.clients)]
    for name in ORDER:
        for judged in (sets[name] for sets in several if name in sets):
            for i in map(int, judged.query):
                found.setdefault(_identity(judged.gallery.pairs, i), (name, judged.gallery.pairs, i))
    by_set = [[v for v in found.values() if v[0] == s] for s in ORDER]
    share = max(1, own.most // max(1, sum(map(bool, by_set))))
    chosen = [v for several in by_set for v in _evenly(several, share)]
    images = np.stack([pairs.images[i] for _, pairs, i in chosen])
    captions = tuple(pairs.captions[i] for _, pairs, i in chosen)
    return Gallery(Pairs(images, captions, ("",) * len(chosen)), tuple(s for s, _, _ in chosen))


def _identity(pairs: Pairs, i: int) -> bytes:
    picture: bytes = pairs.images[i].tobytes()
    return picture + "\0".join(pairs.captions[i]).encode()


def _evenly(found: Sequence[Any], count: int) -> list[Any]:
    return [found[(k * len(found)) // count] for k in range(count)] if len(found) > count else list(found)


class Search:
    """Models of a run with their embeddings of a gallery."""

    def __init__(self, folder: Path, own: Own) -> None:
        """Loads the models and embeds the gallery. Raises ConfigError where this machine owns no pairs."""
        from ease_flwr.audit.embedding import Model
        from ease_flwr.audit.look import MODELS, TOP

        self.best = TOP
        self.gallery = found = gallery(folder, own)
        self.models = {m: Model.of_run(folder, m) for m in MODELS if m in read_results(folder)["models"]}
        captions = [c[0] for c in found.pairs.captions]
        self.images = {name: model.images(found.pairs.images) for name, model in self.models.items()}
        self.texts = {name: model.texts(captions) for name, model in self.models.items()}

    def pictures(self, caption: str) -> dict[str, list[dict[str, Any]]]:
        """What each model finds for a caption, the best first. right: pairs that have this caption."""
        right = {i for i, c in enumerate(self.gallery.pairs.captions) if caption.strip() in c}
        return {name: self._best(name, self.images, model.texts([caption])[0], right) for name, model in self.models.items()}

    def captions(self, picture: int | Image.Image) -> dict[str, list[dict[str, Any]]]:
        """What each model finds for a picture of the gallery, by its number, or for another."""
        right = {picture} if isinstance(picture, int) else set[int]()
        asked = self.gallery.pairs.images[picture] if isinstance(picture, int) else picture
        return {name: self._best(name, self.texts, model.images([asked])[0], right) for name, model in self.models.items()}

    def _best(self, name: str, among: dict[str, Any], query: Any, right: set[int]) -> list[dict[str, Any]]:
        similarity = among[name] @ query
        best = similarity.argsort(descending=True)[: self.best].tolist()
        return [{**self.shown(i), "similarity": round(float(similarity[i]), 3), "right": i in right} for i in best]

    def shown(self, i: int) -> dict[str, Any]:
        """A pair of the gallery, for the page."""
        return {"pair": i, "caption": self.gallery.pairs.captions[i][0], "set": self.gallery.sets[i]}

    def examples(self) -> list[dict[str, Any]]:
        """Pairs to begin with."""
        return [self.shown(i) for i in self.gallery.examples()]

    def png(self, i: int) -> bytes:
        """A picture of the gallery. Raises IndexError."""
        out = io.BytesIO()
        Image.fromarray(self.gallery.pairs.images[i]).save(out, "PNG")
        return out.getvalue()


class Started:
    """A search that is being made in a thread of its own."""

    def __init__(self, make: Callable[[], Search]) -> None:
        self.made: Search | None = None
        self.error = ""
        self._make = make
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self.made = self._make()
        except Exception as error:
            self.error = " ".join(str(error).split())
