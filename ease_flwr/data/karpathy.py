"""Photographs with captions from local disk: a Karpathy-style dataset.json and a folder of images.

Layout of `data.root`: dataset.json and images/. dataset.json is {"images": [{"filename": str, "split": str,
"sentences": [{"raw": str}, ...], "label": str (optional)}, ...]}; splits used are train, val and test; others are ignored.
Images are resized on their shorter side and cropped in the centre when a client first needs them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ease_flwr.core.config import ConfigError, DataConfig, ForgetConfig
from ease_flwr.data.pairs import EvaluationSet, Gallery, Pairs, withdrawn

EXPECTED = "expected dataset.json ({'images': [{'filename', 'split', 'sentences': [{'raw'}], 'label'?}]}) and images/ in it"


@dataclass(frozen=True)
class Entry:
    """One image of dataset.json."""

    file: Path
    captions: tuple[str, ...]
    label: str


def read_index(root: str) -> dict[str, list[Entry]]:
    """dataset.json as entries by split. Raises ConfigError with one line at a missing or broken root."""
    folder = Path(root)
    if not root or not folder.is_absolute() or not folder.is_dir():
        raise ConfigError(f"data.root={root!r} is not an absolute path of a folder: {EXPECTED}")
    file = folder / "dataset.json"
    splits: dict[str, list[Entry]] = {}
    try:
        images: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["images"]
        for i, image in enumerate(images):
            captions = tuple(s["raw"].strip() for s in image["sentences"] if s["raw"].strip())
            if not captions:
                raise ConfigError(f"{file}: images[{i}] ({image['filename']}) has no caption")
            name = Path(image["filename"])
            if name.is_absolute() or ".." in name.parts:
                raise ConfigError(f"{file}: images[{i}] has filename {str(name)!r}, expected one inside images/")
            entry = Entry(folder / "images" / name, captions, str(image.get("label", "")))
            splits.setdefault(image["split"], []).append(entry)
    except FileNotFoundError:
        raise ConfigError(f"data.root={root}: no dataset.json there: {EXPECTED}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file}: not a Karpathy file ({type(error).__name__}: {error}): {EXPECTED}") from None
    return splits


def read_image(file: Path, side: int) -> np.ndarray:
    """uint8 (side, side, 3): shorter side resized (bicubic), centre cropped. Raises ConfigError at an unreadable file."""
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (FileNotFoundError, UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"{file}: image cannot be read ({error})") from None
    scale = side / min(image.size)
    image = image.resize(
        (max(side, round(image.width * scale)), max(side, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def partition(labels: list[str], config: DataConfig, seed: int) -> list[np.ndarray]:
    """Positions of the training pairs of each client: every pair once, shares as equal as the rule allows.

    iid: shuffled and cut.  dirichlet: each label is split by shares from Dirichlet(alpha).  label: sorted by label and
    cut, then `mixed` of every client's pairs is shuffled among all clients.
    """
    rng, k = np.random.default_rng((seed, 20)), config.clients
    if len(labels) < 2 * k:
        raise ConfigError(f"{len(labels)} training pairs are too few for {k} clients")
    if config.partition == "iid":
        parts = np.array_split(rng.permutation(len(labels)), k)
    elif config.partition == "dirichlet":
        buckets: list[list[int]] = [[] for _ in range(k)]
        for label in sorted(set(labels)):
            members = rng.permutation(np.flatnonzero(np.array(labels) == label))
            cuts = (np.cumsum(rng.dirichlet(np.full(k, config.alpha)))[:-1] * len(members)).astype(int)
            for bucket, share in zip(buckets, np.split(members, cuts), strict=True):
                bucket.extend(share.tolist())
        parts = [np.array(b, dtype=np.intp) for b in buckets]
    else:
        order = np.lexsort((rng.permutation(len(labels)), np.array(labels)))
        own = [rng.permutation(p) for p in np.array_split(order, k)]
        keep = [len(p) - round(config.mixed * len(p)) for p in own]
        pool = rng.permutation(np.concatenate([p[n:] for p, n in zip(own, keep, strict=True)]))
        cuts = np.cumsum([len(p) - n for p, n in zip(own, keep, strict=True)])[:-1]
        parts = [np.concatenate([p[:n], extra]) for p, n, extra in zip(own, keep, np.split(pool, cuts), strict=True)]
    if any(len(p) < 2 for p in parts):
        raise ConfigError(f"data.partition={config.partition} leaves a client with less than two pairs: raise data.alpha")
    return [np.sort(p) for p in parts]


@dataclass(frozen=True, eq=False)
class Photographs:
    """The world of one data set and seed."""

    config: DataConfig
    seed: int
    splits: dict[str, list[Entry]]

    @cached_property
    def clients(self) -> tuple[str, ...]:
        return tuple(f"client-{k}" for k in range(self.config.clients))

    @cached_property
    def parts(self) -> list[np.ndarray]:
        return partition([e.label for e in self.splits["train"]], self.config, self.seed)

    def read(self, split: str, index: np.ndarray) -> Pairs:
        entries = [self.splits[split][i] for i in index]
        images = np.stack([read_image(e.file, self.config.image_size) for e in entries])
        return Pairs(images, tuple(e.captions for e in entries), tuple(e.label for e in entries))

    @lru_cache(maxsize=64)  # noqa: B019  (worlds live as long as the process)
    def client(self, name: str) -> PhotographsClient:
        if name not in self.clients:
            raise ValueError(f"no client {name!r} in this world: there are {', '.join(self.clients)}")
        return PhotographsClient(self, self.clients.index(name))

    @cached_property
    def galleries(self) -> dict[str, Gallery]:
        return {s: Gallery.single(self.read(s, np.arange(len(self.splits[s])))) for s in ("val", "test")}

    @lru_cache(maxsize=1)  # noqa: B019  (worlds live as long as the process)
    def unseen(self) -> Pairs:
        pairs = self.galleries["val"].pairs
        return pairs.take(np.arange(min(self.config.unseen, len(pairs))))

    @lru_cache(maxsize=1)  # noqa: B019  (worlds live as long as the process)
    def overlap(self, forget: ForgetConfig, count: int) -> Pairs:
        """Forgotten pairs themselves come back: photographs have no second picture of the same knowledge."""
        theirs = [p[withdrawn(forget, c, self.labels(c))] for c, p in zip(self.clients, self.parts, strict=True)]
        chosen = np.random.default_rng((self.seed, 21)).permutation(np.concatenate(theirs))[:count]
        return self.read("train", chosen)

    def labels(self, client: str) -> tuple[str, ...]:
        """Labels of a client's training pairs, in order."""
        return tuple(self.splits["train"][i].label for i in self.parts[self.clients.index(client)])

    def request(self, forget: ForgetConfig) -> ForgetConfig:
        known = sorted({e.label for e in self.splits["train"]} - {""})
        rng = np.random.default_rng((self.seed, 22))
        targets = forget.targets
        if forget.scenario == "class" and not targets:
            targets = tuple(str(n) for n in rng.permutation(known)[: forget.draw])
        if forget.scenario == "sample" and not targets:
            drawn = (np.sort(rng.permutation(len(p))[: forget.draw]) for p in self.parts)
            targets = tuple(f"{c}/{i}" for c, index in zip(self.clients, drawn, strict=True) for i in index)
        wrong = [t for t in targets if t not in known]
        if forget.scenario == "class" and (wrong or not targets):
            raise ConfigError(f"forget.targets: no training pair has label {wrong}; labels are {', '.join(known) or 'none'}")
        return forget.model_copy(update={"targets": targets})


@dataclass(frozen=True, eq=False)
class PhotographsClient:
    """One client: what it judges are its own training pairs in its own gallery (what has been memorised?)."""

    world: Photographs
    index: int

    @cached_property
    def train(self) -> Pairs:
        return self.world.read("train", self.world.parts[self.index])

    @cached_property
    def own(self) -> Gallery:
        return Gallery.single(self.train)

    def evaluation(self, split: str, forget: ForgetConfig | None) -> dict[str, EvaluationSet]:
        common = self.world.galleries["test" if split == "test" else "val"]
        share = np.arange(self.index, len(common.pairs), len(self.world.clients))
        out = withdrawn(forget, self.world.clients[self.index], self.train.labels)
        about = {"forget": np.flatnonzero(out), "retain": np.flatnonzero(~out)}
        sets = {name: EvaluationSet(self.own, query) for name, query in about.items() if len(query)}
        return {**sets, "test": EvaluationSet(common, share)}

    def never_trained(self, split: str, forget: ForgetConfig | None) -> Pairs:
        """Photographs of the common gallery: of other topics too, so membership is easier to tell here than it should be."""
        return self.evaluation(split, forget)["test"].gallery.pairs


@lru_cache(maxsize=2)
def load(config: DataConfig, seed: int) -> Photographs:
    """Read the index of config.root. Raises ConfigError when something is missing; images are read when they are needed."""
    splits = read_index(config.root)
    for split in ("train", "val", "test"):
        if not splits.get(split):
            raise ConfigError(f"{config.root}/dataset.json has no image of split {split!r}: found {sorted(splits)}")
    missing = next((e.file for entries in splits.values() for e in entries if not e.file.is_file()), None)
    if missing:
        raise ConfigError(f"{missing} is named in dataset.json but is not there")
    return Photographs(config, seed, splits)
