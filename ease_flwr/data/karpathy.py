"""Photographs with captions from local disk: one index file and a folder of images, dealt to the clients of a simulation.

Layout of `data.root`: images/ and one of
    dataset.json    Karpathy: {"images": [{"filename", "split", "sentences": [{"raw"}, ...], "label"?}, ...]}
    captions.json   [{"image", "captions": [...], "label"?, "split"?}, ...]
    captions.csv    with a header: image, caption, and perhaps label and split; a line a caption
Splits used are train, val and test; others are ignored. Where none is named, the hash of an image's name puts a tenth each into
val and test. Images are resized on their shorter side and cropped in the centre when a client first needs them.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ease_flwr.core.config import ConfigError, DataConfig, ForgetConfig, digest
from ease_flwr.core.paths import kept_array
from ease_flwr.data.pairs import EvaluationSet, Gallery, Pairs, withdrawn

EXPECTED = "expected images/ and dataset.json (Karpathy), captions.json or captions.csv in it"
INDEXES = ("dataset.json", "captions.json", "captions.csv")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Entry:
    """One image of the index. name: as it stands there.  where: its place there, for messages."""

    file: Path
    captions: tuple[str, ...]
    label: str
    split: str
    name: str
    where: str

    def problem(self, images: Path) -> str:
        """What is wrong with it, without opening it; "" if nothing is."""
        if images not in self.file.parents or ".." in self.file.parts:
            return f"{self.where} has filename {self.name!r}, expected one inside images/"
        if not self.captions:
            return f"{self.where} ({self.file.name}) has no caption"
        return "" if self.file.is_file() else f"{self.file} is named in {self.where} but is not there"


def read_entries(root: str) -> list[Entry]:
    """The index of a folder as it stands there. Raises ConfigError with one line at a missing or broken root."""
    folder = Path(root)
    if not root or not folder.is_absolute() or not folder.is_dir():
        raise ConfigError(f"data.root={root!r} is not an absolute path of a folder: {EXPECTED}")
    there = [name for name in INDEXES if (folder / name).is_file()]
    if len(there) != 1:
        raise ConfigError(f"data.root={root}: {'no' if not there else 'more than one'} index there: {EXPECTED}")
    file = folder / there[0]
    try:
        rows = list({"dataset.json": _karpathy, "captions.json": _json, "captions.csv": _csv}[there[0]](file))
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ConfigError(f"{file}: not such an index ({type(error).__name__}: {error}): {EXPECTED}") from None
    entries = []
    for where, name, captions, label, split in rows:
        said = tuple(c.strip() for c in captions if c.strip())
        entries.append(Entry(folder / "images" / name, said, label, split or drawn_split(name), name, f"{file}: {where}"))
    return entries


Row = tuple[str, str, list[str], str, str]


def _karpathy(file: Path) -> Iterator[Row]:
    for i, image in enumerate(json.loads(file.read_text(encoding="utf-8"))["images"]):
        captions = [s["raw"] for s in image["sentences"]]
        yield f"images[{i}]", image["filename"], captions, str(image.get("label", "")), image["split"]


def _json(file: Path) -> Iterator[Row]:
    for i, image in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        captions: Any = image["captions"]
        if not isinstance(captions, list):
            raise TypeError(f"[{i}] has captions that are no list")
        yield f"[{i}]", image["image"], captions, str(image.get("label", "")), str(image.get("split", ""))


def _csv(file: Path) -> Iterator[Row]:
    found: dict[str, Row] = {}
    with file.open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f, strict=True):
            where, name = f"image {row['image']!r}", row["image"]
            known = found.setdefault(name, (where, name, [], row.get("label") or "", row.get("split") or ""))
            known[2].append(row["caption"] or "")
    yield from found.values()


def drawn_split(name: str) -> str:
    """train, val or test for an image whose index does not say; always the same for the same name."""
    tenth = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 10
    return {8: "val", 9: "test"}.get(tenth, "train")


def read_index(root: str) -> dict[str, list[Entry]]:
    """The entries of an index by split. Raises ConfigError with one line at the first thing that is wrong."""
    splits: dict[str, list[Entry]] = {}
    for entry in read_entries(root):
        if problem := entry.problem(Path(root) / "images"):
            raise ConfigError(problem)
        splits.setdefault(entry.split, []).append(entry)
    for split in SPLITS:
        if not splits.get(split):
            raise ConfigError(f"data.root={root} has no image of split {split!r}: found {sorted(splits)}")
    return splits


def check(root: str) -> tuple[dict[str, int], list[str]]:
    """Counts of a folder, and everything that is wrong with it: missing and unreadable images, empty captions, double names.

    Raises ConfigError where the index itself cannot be read.
    """
    entries = read_entries(root)
    problems, seen = [], set[Path]()
    for entry in entries:
        problem = entry.problem(Path(root) / "images")
        if entry.file in seen:
            problem = f"{entry.where}: {entry.file.name} is named twice"
        seen.add(entry.file)
        if not problem:
            try:
                read_image(entry.file, 32)
            except ConfigError as error:
                problem = str(error)
        problems += [problem] if problem else []
    counts = {"images": len(entries), "captions": sum(len(e.captions) for e in entries)}
    counts |= {"labels": len({e.label for e in entries} - {""})}
    splits = {split: sum(e.split == split for e in entries) for split in SPLITS}
    problems += [f"{root}: no image of split {split!r}" for split, count in splits.items() if not count]
    return counts | splits, problems


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
        side = self.config.image_size or 224
        found = [(e.file.name, e.file.stat().st_size, e.file.stat().st_mtime_ns) for e in entries] if self.config.cache else []
        images = kept_array(
            self.config.cache, digest("images", side, found), lambda: np.stack([read_image(e.file, side) for e in entries])
        )
        return Pairs(images, tuple(e.captions for e in entries), tuple(e.label for e in entries))

    @lru_cache(maxsize=64)  # noqa: B019  (worlds live as long as the process)
    def client(self, name: str) -> PhotographsClient:
        if name not in self.clients:
            raise ValueError(f"no client {name!r} in this world: there are {', '.join(self.clients)}")
        return PhotographsClient(self, self.clients.index(name))

    @cached_property
    def galleries(self) -> dict[str, Gallery]:
        return {s: Gallery.single(self.read(s, np.arange(len(self.splits[s])))) for s in ("val", "test")}

    def test_share(self, index: int, count: int) -> np.ndarray:
        """Which of the common pairs a client judges."""
        return np.arange(index, count, len(self.clients))

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
        share = self.world.test_share(self.index, len(common.pairs))
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
    return Photographs(config, seed, read_index(config.root))
