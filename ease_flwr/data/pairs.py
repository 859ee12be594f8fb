"""The one type of data: image-caption pairs, and a set of them to be judged by retrieval."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ease_flwr.config import POSITION, ConfigError, ForgetConfig, ForgetSet, Union

Find = Callable[[str], Sequence[int]]
"""Positions of a client's training pairs that the name of a picture, or an id, means; none where it means none."""


def pair_id(picture: bytes, captions: Sequence[str]) -> str:
    """What names a pair by its content: id: and 24 hex digits, of the bytes of its picture and its captions in any order."""
    return "id:" + hashlib.sha256(hashlib.sha256(picture).digest() + json.dumps(sorted(captions)).encode()).hexdigest()[:24]


def picture_id(picture: bytes) -> str:
    """What names a picture alone, whatever its captions are."""
    return "picture:" + hashlib.sha256(picture).hexdigest()[:24]


@dataclass(frozen=True, eq=False)
class Pairs:
    """n images with their captions.

    images: uint8, (n, height, width, 3).  captions: n tuples of one or more sentences.
    labels: n strings, what a pair is about (a persona, a topic; "" where nothing is known).
    key: identity of the images where the host keeps them on disk, or "".
    """

    images: NDArray[np.uint8]
    captions: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    key: str = ""

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.captions) == len(self.labels):
            raise ValueError(f"pairs: {len(self.images)} images, {len(self.captions)} captions, {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: NDArray[np.intp]) -> Pairs:
        """The pairs at these positions, in this order."""
        return Pairs(
            self.images[index],
            tuple(self.captions[i] for i in index),
            tuple(self.labels[i] for i in index),
        )

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(
            np.concatenate([self.images, other.images]),
            self.captions + other.captions,
            self.labels + other.labels,
        )

    @cached_property
    def about(self) -> NDArray[np.str_]:
        """labels as an array, for masks such as `pairs.about == "ann"`."""
        return np.array(self.labels)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Pairs that compete with each other in retrieval.

    group: (n,) integers; a query is ranked only against members of its own group, so a group is a
    fixed gallery. One group for all is the ordinary gallery; a hard gallery has many small ones.
    """

    pairs: Pairs
    group: NDArray[np.intp]

    @classmethod
    def single(cls, pairs: Pairs) -> Gallery:
        return cls(pairs, np.zeros(len(pairs), dtype=np.intp))


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """The pairs of a gallery, by position, that one client judges."""

    gallery: Gallery
    query: NDArray[np.intp]
    apart: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    """Pairs of the gallery that another split judges."""


def with_queries(sets: Mapping[str, EvaluationSet]) -> dict[str, EvaluationSet]:
    """Those of these sets that have a query: a set without one is not judged."""
    return {name: chosen for name, chosen in sets.items() if len(chosen.query)}


class ClientData(Protocol):
    """What one client has."""

    @property
    def train(self) -> Pairs: ...

    @property
    def labels(self) -> Sequence[str]:
        """Of the training pairs, without their images."""
        ...

    @property
    def digest(self) -> str:
        """Of the content of all training pairs; "" where it cannot change behind the back of a run."""
        ...

    @property
    def ids(self) -> Sequence[tuple[str, str]]:
        """Of the training pairs: pair_id and picture_id; none where pairs are drawn."""
        ...

    @property
    def barred(self) -> NDArray[np.bool_]:
        """Which of the training pairs may not be trained on, as they were withdrawn, in this run or another, (n,)."""
        ...

    def find(self, pair: str) -> Sequence[int]:
        """See Find."""
        ...

    def named(self, forget: Union) -> NDArray[np.bool_]:
        """Which of the training pairs any of these forget sets names, (n,); see `withdrawn`."""
        ...

    def evaluation(self, split: str, forget: Union) -> dict[str, EvaluationSet]:
        """The sets this client judges in a split ("validation" or "test").

        forget: what is to be forgotten; it decides which pairs count as forget set and which as retain set.
        """
        ...

    def never_trained(self, split: str, forget: Union) -> Pairs:
        """Pairs like those of this client that are to be forgotten, which nobody was trained on."""
        ...

    def strangers(self, split: str) -> tuple[Pairs, EvaluationSet]:
        """Pairs as those that clients train on, and queries to be judged, of what no client has trained on."""
        ...


class World(Protocol):
    """All clients of an experiment. A client host uses its own part only."""

    @property
    def clients(self) -> tuple[str, ...]: ...

    def client(self, name: str) -> ClientData: ...

    def prove(self, say: Callable[[str], None]) -> None:
        """See that all pairs of this world can be used, before anything is learnt; say what takes long. Raises DataError."""
        ...

    def unseen(self) -> Pairs:
        """Public pairs that no client ever trains on: they show how well a model matches what it does not know."""
        ...

    def resolve(self, forget: ForgetConfig) -> ForgetConfig:
        """The same with targets, drawn by the seed where there are none. Raises ConfigError at targets there are not."""
        ...

    def returning(self, forget: Union, count: int) -> Pairs:
        """`count` fresh pairs about what nobody knows once this is forgotten, as a client might meet later."""
        ...


def withdrawn(forget: Union, client: str, labels: Sequence[str], find: Find = lambda _: ()) -> NDArray[np.bool_]:
    """Which of a client's training pairs, in order, any of these forget sets names, (n,).

    A name or an id that means no pair names none (see `unknown`). Raises ConfigError at a position that there is not.
    """
    mask = np.zeros(len(labels), dtype=np.bool_)
    for part in forget:
        mask |= _named(part, client, labels, find)
    return mask


def unknown(forget: ForgetSet, client: str, labels: Sequence[str], find: Find) -> list[str]:
    """Labels, and names and ids of this client's pairs, that name none of its training pairs."""
    if forget.scenario == "class":
        return sorted(set(forget.targets) - set(labels))
    pairs = [p for name, p in forget.pairs if name == client and not POSITION.fullmatch(p)]
    return [f"{client}/{p}" for p in pairs if not find(p)]


def _named(forget: ForgetSet, client: str, labels: Sequence[str], find: Find) -> NDArray[np.bool_]:
    n = len(labels)
    if forget.scenario == "client":
        return np.full(n, client in forget.targets)
    if forget.scenario == "class":
        wanted = set(forget.targets)
        return np.array([label in wanted for label in labels], dtype=np.bool_)
    mask = np.zeros(n, dtype=np.bool_)
    for name, pair in forget.pairs:
        if name != client:
            continue
        if not POSITION.fullmatch(pair):
            mask[list(find(pair))] = True
            continue
        span = slice(*(int(p) if p else None for p in pair.split(":"))) if ":" in pair else int(pair)
        if isinstance(span, int) and span >= n:
            raise ConfigError(f"forget.targets: {name}/{pair}: {client} has {n} pairs, counted from 0")
        if isinstance(span, slice) and span.step == 0:
            raise ConfigError(f"forget.targets: {name}/{pair}: a step of 0 names no pair: give 1 or more, or leave it out")
        mask[span] = True
    return mask
