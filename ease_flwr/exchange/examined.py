"""What a client answers in an audit, and what its probes are like on every client."""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from ease_flwr.config import Section
from ease_flwr.exchange.judgement import Cosine, SetName, evenly

Numbers = tuple[FiniteFloat, ...]
BATCH_SEEDS = 4
"""Orders of batches that forgotten pairs are learnt again in, by every probe that does so; the same for all models."""
STEPS = (1, 5, 15, 40)
"""Of relearning, after which recall is taken; before the first step it is taken too."""
CROSS_STEPS = 2
"""Of relearning with one tower alone."""
Score = Annotated[FiniteFloat, Field(ge=-1e6, le=1e6)]
"""Of a classifier, or a loss: a bound that no sum of them leaves the numbers by."""
TWO = 2
"""Forgotten pairs of a client that CKA, linear probe and learning again need, at least."""
MOST = 200
"""Pairs that a probe looks at, at most, on either side."""
Scores = Annotated[tuple[Score, ...], Field(max_length=MOST)]
Features = tuple[Score, Score, Score, Score]
"""By which membership is attacked, clients/audit.py: FEATURES."""
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Two = tuple[NonNegativeInt, NonNegativeInt]
"""Of image queries and of text queries."""


class ExaminedSet(Section):
    """One client's queries in a set, one by one."""

    i2t: tuple[PositiveInt, ...] = Field(min_length=1)
    """Rank of the partner, from 1, of each image query."""
    t2i: tuple[PositiveInt, ...]
    """The same of each text query, picture by picture."""
    captions: tuple[PositiveInt, ...]
    """How many text queries belong to each image query."""
    similarity: tuple[Cosine, ...]
    """Cosine of each pair."""
    labels: Numbers
    """What each image query is about, as a number that does not say it; -1 where it is about nothing."""

    @model_validator(mode="after")
    def _possible(self) -> ExaminedSet:
        lengths = {len(self.i2t), len(self.captions), len(self.similarity), len(self.labels)}
        if len(lengths) > 1 or sum(self.captions) != len(self.t2i):
            texts = f"{sum(self.captions)} captions and {len(self.t2i)} text queries"
            raise ValueError(f"{' or '.join(map(str, sorted(lengths)))} image queries with {texts}")
        return self

    @property
    def queries(self) -> int:
        """How many images were looked for."""
        return len(self.i2t)

    def at_most(self, queries: int) -> ExaminedSet:
        """The same of at most so many image queries, spread evenly."""
        if len(self.i2t) <= queries:
            return self
        ends = list(accumulate(self.captions))
        texts = [self.t2i[end - n : end] for n, end in zip(self.captions, ends, strict=True)]
        return ExaminedSet(
            i2t=evenly(self.i2t, queries),
            t2i=tuple(rank for of in evenly(texts, queries) for rank in of),
            captions=evenly(self.captions, queries),
            similarity=evenly(self.similarity, queries),
            labels=evenly(self.labels, queries),
        )


class MemberHits(Section):
    """Partners that a probe found first among the queries about one label; a pair without a label stands by itself."""

    label: FiniteFloat
    of: tuple[PositiveInt, PositiveInt]
    """Image and text queries that were judged."""
    hits: tuple[tuple[Two, ...], ...]
    """By order of batches, then by number of steps: how many of either were found first."""

    @model_validator(mode="after")
    def _possible(self) -> MemberHits:
        for i, t in (two for by_stop in self.hits for two in by_stop):
            if i > self.of[0] or t > self.of[1]:
                raise ValueError(f"{i} and {t} hits of {self.of[0]} image and {self.of[1]} text queries")
        return self

    def counted(self, orders: int, stops: int) -> bool:
        """Whether it was judged after so many numbers of steps, in each of so many orders of batches."""
        return [len(by_stop) for by_stop in self.hits] == [stops] * orders


class Examination(Section):
    """What one client answered about one model in an audit. Probes that were not asked for, or did not apply, are empty."""

    sets: dict[SetName, ExaminedSet]
    member: tuple[Features, ...] = Field((), max_length=MOST)
    """Features of forgotten training pairs, a row a pair (clients/audit.py: FEATURES)."""
    stranger: tuple[Features, ...] = Field((), max_length=MOST)
    """The same of pairs like them that nobody trained on."""
    member_labels: Numbers = ()
    """What the forgotten pairs of membership and linear probe are about, as in ExaminedSet."""
    stranger_labels: Numbers = ()
    """The same of the pairs that nobody trained on."""
    samples: dict[Literal["forget", "retain", "strangers"], ExaminedSet] = Field(default_factory=dict)
    """Pairs that are forgotten, pairs that are kept, and strangers, on which nobody trained; either is judged among these."""
    backdoor: tuple[bool, ...] = ()
    """Of each marked picture, whether the sentence of the mark comes first."""
    relearn: tuple[MemberHits, ...] = ()
    """Before and after some steps of learning the forgotten pairs again."""
    regained: tuple[Share, ...] = ()
    """Share of the first step's squared length along locked directions, by order of batches; who has no lock says nothing."""
    cross: dict[Literal["visual", "text"], tuple[MemberHits, ...]] = Field(default_factory=dict)
    """After learning them again with one tower alone."""
    swap: dict[Literal["visual", "text"], tuple[MemberHits, ...]] = Field(default_factory=dict)
    """Without learning: with this tower of the model and the other one of the retrained model."""
    probe: tuple[Scores, Scores] | None = None
    """Scores of a linear classifier on embeddings, of the forgotten pairs and of those that nobody trained on."""
    cka: dict[Literal["forget", "public"], tuple[Cosine, Cosine]] = Field(default_factory=dict)
    """Linear CKA to the retrained model, image and text."""

    @model_validator(mode="after")
    def _possible(self) -> Examination:
        sides = len(self.member_labels), len(self.stranger_labels)
        for name, (inside, outside) in {"member": (self.member, self.stranger), "probe": self.probe or ((), ())}.items():
            if (inside or outside) and (len(inside), len(outside)) != sides:
                raise ValueError(f"{name}: {len(inside)} and {len(outside)} rows for {sides[0]} and {sides[1]} labels")
        probes = [(self.relearn, BATCH_SEEDS, 1 + len(STEPS))]
        probes += [(found, BATCH_SEEDS, 1) for found in self.cross.values()] + [(found, 1, 1) for found in self.swap.values()]
        for found, orders, stops in probes:
            if not all(hits.counted(orders, stops) for hits in found):
                raise ValueError(f"a probe without {stops} counts in each of {orders} orders of batches")
        if len(self.regained) not in (0, BATCH_SEEDS):
            raise ValueError(f"{len(self.regained)} first steps in {BATCH_SEEDS} orders of batches")
        return self
