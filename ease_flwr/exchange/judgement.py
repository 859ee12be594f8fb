"""What clients count when they judge a model, and the sums over clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, NonNegativeInt, model_validator

from ease_flwr.config import Section

T = TypeVar("T")
KS = (1, 5, 10)
"""Recall is counted at these ranks."""
SetName = Literal[
    "forget_exclusive",
    "forget_word",
    "forget_look",
    "forget_both",
    "forget_shared",
    "forget",
    "retain",
    "test",
    "forget_unseen",
    "neighbours",
]
PARTS: tuple[SetName, ...] = ("forget_word", "forget_look", "forget_both")
"""Parts of forget_exclusive, by what tells its labels apart, where a world has them."""
SETS: tuple[str, ...] = SetName.__args__  # type: ignore[attr-defined]
Count = Annotated[int, Field(ge=1)]
"""A set without a query is not judged, so it is not answered."""
Cosine = Annotated[FiniteFloat, Field(ge=-1.01, le=1.01)]
"""As half precision rounds it."""
Hits = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]


class SetCounts(Section):
    """Hits of `images` image queries and `texts` text queries at 1, 5 and 10. Sums over clients are counts again."""

    images: Count
    texts: Count
    i2t: Hits
    t2i: Hits
    gallery: Count
    """Pairs that compete with each other."""
    similarity: tuple[Cosine, ...] = ()
    """Cosine of each pair, where it was asked for."""

    @model_validator(mode="after")
    def _possible(self) -> SetCounts:
        if max(self.i2t) > self.images or max(self.t2i) > self.texts:
            raise ValueError(f"{max(*self.i2t, *self.t2i)} hits of {self.images} images and {self.texts} texts")
        if [*self.i2t] != sorted(self.i2t) or [*self.t2i] != sorted(self.t2i):
            raise ValueError("fewer hits at a later rank than at an earlier one")
        if len(self.similarity) not in (0, self.images):
            raise ValueError(f"{len(self.similarity)} similarities of {self.images} pairs")
        return self

    def __add__(self, other: SetCounts) -> SetCounts:
        """Both together; the gallery is the first one's, which all clients share or each has to itself."""
        return SetCounts(
            images=self.images + other.images,
            texts=self.texts + other.texts,
            i2t=_added(self.i2t, other.i2t),
            t2i=_added(self.t2i, other.t2i),
            gallery=other.gallery,
            similarity=self.similarity + other.similarity,
        )

    @property
    def queries(self) -> int:
        """How many images were looked for."""
        return self.images

    def at_most(self, queries: int) -> SetCounts:
        """The same shares of at most so many image queries."""
        if self.images <= queries:
            return self
        by = queries / self.images
        texts = max(1, int(self.texts * by))
        found = {"images": queries, "texts": texts, "i2t": _scaled(self.i2t, by, queries), "t2i": _scaled(self.t2i, by, texts)}
        return SetCounts(**found, gallery=self.gallery, similarity=evenly(self.similarity, queries))

    def percent(self) -> dict[str, Any]:
        """Recall in percent: {"i2t": {"r1", "r5", "r10"}, "t2i": {...}, "r1": mean of both directions}."""
        i2t = {f"r{k}": 100 * h / self.images for k, h in zip(KS, self.i2t, strict=True)}
        t2i = {f"r{k}": 100 * h / self.texts for k, h in zip(KS, self.t2i, strict=True)}
        return {"i2t": i2t, "t2i": t2i, "r1": (i2t["r1"] + t2i["r1"]) / 2}


def _scaled(hits: Hits, by: float, most: int) -> Hits:
    first, fifth, tenth = (min(most, round(h * by)) for h in hits)
    return first, fifth, tenth


def evenly(values: Sequence[T], count: int) -> tuple[T, ...]:
    """So many of these values, spread evenly over all of them; all where there are no more."""
    return tuple(values[i * len(values) // count] for i in range(count)) if len(values) > count else tuple(values)


def _added(a: Hits, b: Hits) -> Hits:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


class Evaluation(Section):
    """What one client counted about one model."""

    sets: dict[SetName, SetCounts]


@dataclass
class Judgement:
    """One model, all clients together.

    sets: name -> {"n", "gallery", "i2t", "t2i", "r1"}.  similarity: name -> cosine of each pair.  clients: client -> set ->
    R@1.
    """

    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    similarity: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    clients: dict[str, dict[str, float]] = field(default_factory=dict)

    def r1(self, name: str) -> float:
        """R@1 in percent on a set, the mean of both directions."""
        return float(self.sets[name]["r1"])


def pool(answers: Mapping[str, Evaluation]) -> Judgement:
    """Sum what clients said about a model, by client. "forget" is the union of its two parts if they exist."""
    counts: dict[str, SetCounts] = {}
    found = Judgement()
    for client, said in sorted(answers.items()):
        for name, new in said.sets.items():
            counts[name] = counts[name] + new if name in counts else new
            found.clients.setdefault(client, {})[name] = new.percent()["r1"]
    parts = [counts[s] for s in ("forget_exclusive", "forget_shared") if s in counts]
    if parts:
        counts["forget"] = sum(parts[1:], parts[0]).model_copy(update={"gallery": parts[0].gallery})
    found.similarity = {s: np.array(c.similarity) for s, c in counts.items() if c.similarity}
    found.sets = {s: {"n": counts[s].images, "gallery": counts[s].gallery, **counts[s].percent()} for s in SETS if s in counts}
    return found
