"""Photographs with captions from local disk (layouts: ease_flwr/data/formats.py), dealt to the clients of a simulation.

Images are resized on their shorter side and cropped in the centre when a client first needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ease_flwr.config import PAIR_ID, DataConfig, DataError, ForgetConfig, Union, canonical, digest, file_sha256
from ease_flwr.data import pictures
from ease_flwr.data.entries import Entry, RowError, word
from ease_flwr.data.formats import SIDE, read_index
from ease_flwr.data.pairs import EvaluationSet, Gallery, Pairs, pair_id, picture_id, withdrawn
from ease_flwr.data.partition import WHOLE, dealt, read_names, undealt
from ease_flwr.model import fitting
from ease_flwr.store import cache
from ease_flwr.store.files import home
from ease_flwr.store.tombstones import salted

IDS = 1.0
"""GiB that the kept ids of pairs may fill."""
DECODER = digest([file_sha256(Path(str(code.__file__))) for code in (pictures, fitting)])
"""What makes pixels of a file: other code makes others."""


def labelled(splits: dict[str, list[Entry]], file: str) -> dict[str, list[Entry]]:
    """The same with labels from a JSON file {name: label}, "" or null is none. Raises DataError where an image is not there."""
    if not file:
        return splits
    said = read_names(file, "data.labels")
    try:
        labels = {canonical(name): word("label", label) for name, label in said.items()}
    except RowError as error:
        raise DataError(f"data.labels: {file}: an image {error}") from None
    if len(labels) < len(said):
        raise DataError(f"data.labels: {file} has an image twice, in spellings that look alike: make it anew")
    if missing := [e.name for entries in splits.values() for e in entries if canonical(e.name) not in labels]:
        raise DataError(f"data.labels: {file} has no label for {missing[0]} and {len(missing) - 1} others: make it anew")
    return {s: [replace(e, label=labels[canonical(e.name)]) for e in entries] for s, entries in splits.items()}


def apart(count: int, part: int, draw: int) -> np.ndarray:
    """Which `part` of so many photographs are set apart, (count,) of bool: drawn once and for all, so that neither a seed nor
    a partition nor a request moves one over."""
    return np.isin(np.arange(count), np.random.default_rng(draw).permutation(count)[:part])


@dataclass(frozen=True, eq=False)
class Photographs:
    """The world of one data set and seed."""

    config: DataConfig
    seed: int
    splits: dict[str, list[Entry]]

    @cached_property
    def clients(self) -> tuple[str, ...]:
        return self.config.client_names or tuple(sorted({e.client for e in self.splits["train"]}))

    @cached_property
    def parts(self) -> list[np.ndarray]:
        """Positions of each client's pairs in the train split."""
        return dealt(self.splits["train"], self.clients, self.config, self.seed)

    def read(self, split: str, index: np.ndarray) -> Pairs:
        """Some pairs of a split, with their images."""
        entries = [self.splits[split][i] for i in index]
        images, key = self._images(entries, limit=self.config.cache_limit)
        return Pairs(images, tuple(e.captions for e in entries), tuple(e.label for e in entries), key)

    def prepare(self, say: Callable[[str], None]) -> None:
        """Decode everything into `data.cache`, or go on with that, and check what is there already."""
        parts = {f"train of {name}": ("train", part) for name, part in zip(self.clients, self.parts, strict=True)}
        parts |= {"val": ("val", self.common("val")), "public": ("val", np.flatnonzero(self.public))}
        parts |= {"test": ("test", self.common("test"))}
        for what, (split, index) in parts.items():

            def told(line: str, what: str = what) -> None:
                say(f"{what}: {line}")

            self._images([self.splits[split][i] for i in index], verify=True, say=told)

    def prove(self, say: Callable[[str], None]) -> None:
        """Decode every picture as training does, before anything is learnt; what was decoded is remembered by name, size and
        time. Says which pictures no client has. Raises DataError at the first that cannot be decoded."""
        entries = [e for split in self.splits.values() for e in split]  # of all splits: the check names all, too
        if not entries:
            return
        place = cache.Place(
            str(Path(self.config.memory or home()) / "decoded"), digest(DECODER, [e.identity for e in entries]), IDS
        )

        def some(start: int, stop: int) -> np.ndarray:
            with ThreadPoolExecutor() as pool:
                return np.array([len(i) for i in pool.map(lambda e: e.image(SIDE), entries[start:stop])], dtype=np.uint8)

        say(f"[data] {len(entries)} pictures are decoded, those that were not before")
        try:
            cache.kept(place, len(entries), some)
        except OSError:  # of a folder that cannot be written: nothing is remembered
            cache.kept(cache.Place("", ""), len(entries), some)
        if self.config.partition not in WHOLE and (rest := undealt(self.splits["train"], self.parts)):
            say(rest)

    def _images(self, entries: list[Entry], limit: float = 0, **more: Any) -> tuple[np.ndarray, str]:
        """Decoded images, uint8 (n, side, side, 3), and their key in the cache. limit, more: see cache.Place and cache.kept."""
        c = self.config
        how = (c.image_size or 224, c.resize, c.interpolation)
        key = digest("images", DECODER, how, [e.identity for e in entries]) if c.cache else ""

        def some(start: int, stop: int) -> np.ndarray:
            with ThreadPoolExecutor() as pool:
                return np.stack(list(pool.map(lambda e: e.image(*how), entries[start:stop])))

        return cache.kept(cache.Place(c.cache, key, limit), len(entries), some, **more), key

    @lru_cache(maxsize=64)  # noqa: B019  (worlds live as long as the process)
    def client(self, name: str) -> PhotographsClient:
        if name not in self.clients:
            raise ValueError(f"no client {name!r} in this world: there are {', '.join(self.clients)}")
        return PhotographsClient(self, self.clients.index(name))

    @cached_property
    def chosen_on(self) -> np.ndarray:
        """Which photographs of the train split are judged as validation, (n,): a third. The others are judged as test."""
        count = len(self.splits["train"])
        return apart(count, count // 3, 23)

    @cached_property
    def public(self) -> np.ndarray:
        """Which photographs of the val split are public pairs, (n,): half of them at most."""
        count = len(self.splits["val"])
        return apart(count, min(self.config.unseen, max(1, count // 2)), 24)

    def common(self, split: str) -> np.ndarray:
        """Positions of the photographs of a split that all clients judge: of val not the public ones, if there are others."""
        every = np.arange(len(self.splits[split]))
        return every[~self.public] if split == "val" and not self.public.all() else every

    @cached_property
    def galleries(self) -> dict[str, Gallery]:
        return {s: Gallery.single(self.read(s, self.common(s))) for s in ("val", "test")}

    def test_share(self, index: int, count: int) -> np.ndarray:
        """Which of the common pairs a client judges."""
        return np.arange(index, count, len(self.clients))

    @lru_cache(maxsize=1)  # noqa: B019  (worlds live as long as the process)
    def unseen(self) -> Pairs:
        return self.read("val", np.flatnonzero(self.public))

    @lru_cache(maxsize=1)  # noqa: B019  (worlds live as long as the process)
    def returning(self, forget: Union, count: int) -> Pairs:
        """Forgotten pairs themselves come back: photographs have no second picture of the same knowledge."""
        taken = {c: self.client(c).named(forget) for c in self.clients}
        theirs = [p[taken[c]] for c, p in zip(self.clients, self.parts, strict=True)]
        chosen = np.random.default_rng((self.seed, 21)).permutation(np.concatenate(theirs))[:count]
        return self.read("train", chosen)

    def ids(self, index: np.ndarray) -> tuple[tuple[str, str], ...]:
        """Of these pairs of the train split: pair_id and picture_id. Reads every picture, once where they can be kept."""
        entries = [self.splits["train"][i] for i in index]
        if not entries:
            return ()
        place = str(Path(self.config.memory) / "ids") if self.config.memory else ""
        key = digest("ids", [[*e.identity, *e.captions] for e in entries]) if place else ""

        def both(entry: Entry) -> tuple[str, str]:
            picture = entry.content()
            return pair_id(picture, entry.captions), picture_id(picture)

        def some(start: int, stop: int) -> np.ndarray:
            with ThreadPoolExecutor() as pool:
                return np.array(list(pool.map(both, entries[start:stop])), dtype="S32")

        return tuple((i.decode(), p.decode()) for i, p in cache.kept(cache.Place(place, key, IDS), len(entries), some))

    def digest_of(self, index: np.ndarray) -> str:
        """Of the content of these pairs of the train split; a simulation's data are what its settings say."""
        return ""

    def resolve(self, forget: ForgetConfig) -> ForgetConfig:
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
            raise DataError(f"forget.targets: no training pair has label {wrong}; labels are {', '.join(known) or 'none'}")
        return forget.model_copy(update={"targets": targets})


@dataclass(frozen=True, eq=False)
class PhotographsClient:
    """One client: what it judges are its own training pairs in its own gallery (what has been memorised?). A split judges its
    part of them; where that is nothing of what is to be forgotten, or of what is kept, it judges all of that."""

    world: Photographs
    index: int

    @cached_property
    def train(self) -> Pairs:
        return self.world.read("train", self.world.parts[self.index])

    @cached_property
    def own(self) -> Gallery:
        return Gallery.single(self.train)

    @cached_property
    def entries(self) -> list[Entry]:
        """Of the training pairs."""
        return [self.world.splits["train"][i] for i in self.world.parts[self.index]]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(e.label for e in self.entries)

    @cached_property
    def digest(self) -> str:
        return self.world.digest_of(self.world.parts[self.index])

    def find(self, pair: str) -> list[int]:
        if PAIR_ID.fullmatch(pair):
            return self._by_id.get(pair, [])
        return self._by_name.get(canonical(pair), [])

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        return _positions(canonical(e.name) for e in self.entries)

    @cached_property
    def _by_id(self) -> dict[str, list[int]]:
        return _positions(i for i, _ in self.ids)

    @cached_property
    def ids(self) -> tuple[tuple[str, str], ...]:
        """Of the training pairs: pair_id and picture_id."""
        return self.world.ids(self.world.parts[self.index])

    @cached_property
    def barred(self) -> np.ndarray:
        salt, *digests = self.world.config.barred or ("",)
        kept = set(digests)
        if not kept:
            return np.zeros(len(self.entries), dtype=np.bool_)
        return np.array([any(salted(salt, i) in kept for i in both) for both in self.ids], dtype=np.bool_)

    def named(self, forget: Union) -> np.ndarray:
        return withdrawn(forget, self.world.clients[self.index], self.labels, self.find)

    def evaluation(self, split: str, forget: Union) -> dict[str, EvaluationSet]:
        common = self.world.galleries["test" if split == "test" else "val"]
        share = self.world.test_share(self.index, len(common.pairs))
        out = self.named(forget)
        ours = self.world.chosen_on[self.world.parts[self.index]] == (split == "validation")
        sets = {}
        for name, about in (("forget", out), ("retain", ~out & ~self.barred)):
            if about.any():
                query = about & ours if (about & ours).any() else about
                sets[name] = EvaluationSet(self.own, np.flatnonzero(query), np.flatnonzero(~ours))
        return {**sets, "test": EvaluationSet(common, share)}

    def never_trained(self, split: str, forget: Union) -> Pairs:
        """Photographs of the common gallery: of other topics too, so membership is easier to tell here than it should be."""
        return self.evaluation(split, forget)["test"].gallery.pairs

    def strangers(self, split: str) -> tuple[Pairs, EvaluationSet]:
        """Photographs of the common gallery, this client's share of them."""
        test = self.evaluation(split, ())["test"]
        return test.gallery.pairs, test


def _positions(names: Iterable[str]) -> dict[str, list[int]]:
    """By name, where it stands."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        found.setdefault(name, []).append(i)
    return found


@lru_cache(maxsize=2)
def load(config: DataConfig, seed: int) -> Photographs:
    """Read the index of config.root, and deal it to the clients. Raises DataError when something is missing or does not fit;
    images are read when they are needed."""
    world = Photographs(config, seed, labelled(read_index(config.root), config.labels))
    _ = world.parts  # what it says of a partition that does not fit is said now
    return world
