"""What a client answers, one type a kind of instruction, and the checks that every answer passes before it is kept or used."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator

from ease_flwr.config import NAME, Section
from ease_flwr.exchange.judgement import Evaluation, SetName
from ease_flwr.exchange.messages import ADAPTERS, STEP, Forget, Learn, pack, unpack

MANY = 2**62
Numbers = tuple[FiniteFloat, ...]
LABELS = "labels"
"""Metric of every training that forgets classes: how many of them this client knows."""
MEASURED = frozenset(("num-examples", "loss", "steps", "memory", "seconds", "load_seconds", "process_seconds", LABELS))
"""Metrics of every training answer. Others are the objective's own, what its `finish` returns."""
OWN = 32
"""An objective may have so many of its own."""
PUSH = "lock_push"
"""Metric of every training under a forget lock: G of clients/locking.py."""

BATCH_SEEDS = 4
"""Orders of batches that forgotten pairs are learnt again in, by every probe that does so; the same for all models."""
STEPS = (1, 5, 15, 40)
"""Of relearning, after which recall is taken; before the first step it is taken too."""
CROSS_STEPS = 2
"""Of relearning with one tower alone."""
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Two = tuple[NonNegativeInt, NonNegativeInt]
"""Of image queries and of text queries."""


class ExaminedSet(Section):
    """One client's queries in a set, one by one."""

    i2t: tuple[NonNegativeInt, ...]
    """Rank of the partner, from 1, of each image query."""
    t2i: tuple[NonNegativeInt, ...]
    """The same of each text query, picture by picture."""
    captions: tuple[PositiveInt, ...]
    """How many text queries belong to each image query."""
    similarity: Numbers
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
    member: tuple[Numbers, ...] = ()
    """Features of forgotten training pairs, a row a pair (clients/audit.py: FEATURES)."""
    stranger: tuple[Numbers, ...] = ()
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
    probe: tuple[Numbers, Numbers] | None = None
    """Scores of a linear classifier on embeddings, of the forgotten pairs and of those that nobody trained on."""
    cka: dict[Literal["forget", "public"], tuple[FiniteFloat, FiniteFloat]] = Field(default_factory=dict)
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


class Present(Section):
    """Answer to a roll call."""

    name: str
    pairs: int = Field(ge=0)
    """Training pairs."""
    forget: tuple[NonNegativeInt, ...] = ()
    """How many of them each forget set is the first to name."""
    refused: tuple[str, ...] = ()
    """Why a forget set does not fit this client's data, "" where it does."""
    unknown: tuple[tuple[str, ...], ...] = ()
    """Of each forget set, labels and single pairs that name none of its training pairs."""
    data: str = ""
    """Digest of the content of its training pairs; "" in a simulation."""
    barred: int = Field(0, ge=0)
    """Pairs that it leaves out, as they were withdrawn in another run."""
    code: str
    base: str
    threads: int = 1

    @model_validator(mode="after")
    def _possible(self) -> Present:
        if not NAME.fullmatch(self.name) or sum(self.forget) > self.pairs:
            raise ValueError(f"a node calls itself {self.name[:80]!r}, with {self.pairs} pairs: neither can be used")
        return self


@dataclass(frozen=True)
class Update:
    """A valid answer of one client to a training instruction."""

    client: str
    adapters: NDArray[np.float32]
    """The adapter vector after training, (p,)."""
    step: NDArray[np.float32] | None
    """What the second job changed, (p,), if one was asked for."""
    metrics: dict[str, Any]
    judged: Evaluation | None = None
    """What it counted on the adapters before training, if it was asked."""
    nbytes: int = 0
    """Of the arrays as they came."""

    @property
    def examples(self) -> int:
        """Pairs it trained on."""
        return int(self.metrics["num-examples"])

    @property
    def own(self) -> dict[str, float]:
        """What the objective says of its work, by name."""
        return {k: v for k, v in self.metrics.items() if k not in MEASURED}

    def message(self) -> Message:
        """The adapters and their weight as a message of Flower's own kind, for its aggregation."""
        metrics = MetricRecord({"num-examples": self.examples})
        content = RecordDict({"arrays": pack({ADAPTERS: self.adapters}), "metrics": metrics})
        return Message(content, dst_node_id=1, message_type="train")


# ---- writing: the client's half --------------------------------------------------------------------------------------------


def answer(values: Any) -> RecordDict:
    """An answer without arrays, as it travels: JSON of a model, of a dictionary of them, or JSON as it is."""
    return RecordDict({"answer": ConfigRecord({"json": values if isinstance(values, str) else as_json(values)})})


def as_json(values: Any) -> str:
    """JSON of a model, or of a dictionary of models."""
    if isinstance(values, Section):
        return values.model_dump_json()
    return json.dumps({k: v.model_dump(mode="json") for k, v in values.items()})


def trained(arrays: Mapping[str, NDArray[Any]], metrics: Mapping[str, Any], judged: Evaluation | None) -> RecordDict:
    """An answer to a training instruction, as it travels."""
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in metrics.items()}
    content = RecordDict({"arrays": pack(arrays), "metrics": MetricRecord(plain)})
    if judged:
        content["answer"] = ConfigRecord({"json": as_json(judged)})
    return content


# ---- reading: the server's half ----------------------------------------------------------------------------------------------


S = TypeVar("S", bound=Section)


def read(reply: Message, kind: type[S]) -> S:
    """An answer that is one model. Raises ValueError."""
    return validated(kind, _json(reply))


def read_models(reply: Message, kind: type[S], models: Collection[str]) -> dict[str, S]:
    """An answer about every model that was sent, and about no other. Raises ValueError."""
    said = _json(reply)
    if not isinstance(said, dict) or set(said) != set(models):
        named = sorted(map(str, said))[:5] if isinstance(said, dict) else type(said).__name__
        raise ValueError(f"an answer about {named}, expected {sorted(models)[:5]}")
    return {name: validated(kind, said[name]) for name in models}


def validated(kind: type[S], value: Any) -> S:
    """`kind` of plain values. Raises ValueError with one line."""
    try:
        return kind.model_validate_json(json.dumps(value))  # JSON knows no tuples: read it as it came
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])[:80]
        raise ValueError(f"answer{f' {where}' if where else ''}: {first['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise ValueError(f"answer: {error}") from None


def _json(reply: Message) -> Any:
    records = reply.content.config_records
    try:
        return json.loads(str(records["answer"]["json"]), parse_constant=_refuse)
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"no usable answer, but {sorted(reply.content)}: {' '.join(str(error).split())[:100]}") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number")


def read_update(client: str, reply: Message, sent: NDArray[np.float32], asked: Learn | Forget, most: int = MANY) -> Update:
    """Check an answer to a training instruction. Raises ValueError: key set, shape, dtype, finiteness, counts, metric types.

    sent: the adapters it started from, (p,).  most: pairs the client has, so many examples it can have trained on.
    """
    two = isinstance(asked, Learn) and asked.beside is not None
    kinds = {ADAPTERS: np.dtype(np.float16 if asked.half else np.float32), **({STEP: np.dtype(np.float16)} if two else {})}
    records = list(reply.content.array_records.values())
    if len(records) != 1 or tuple(records[0]) != tuple(kinds):
        raise ValueError(f"expected one record of {', '.join(kinds)}, got {[list(a) for a in records]}")
    try:
        arrays = unpack(records[0])
    except Exception as error:  # whatever NumPy makes of bytes that are not an array
        raise ValueError(f"not an array: {' '.join(str(error).split())[:100]}") from None
    for name, values in arrays.items():
        if values.shape != sent.shape or values.dtype != kinds[name]:
            raise ValueError(f"{name} of shape {values.shape} and type {values.dtype}, expected {sent.shape} {kinds[name]}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} not finite")
    metrics = _metrics(reply)
    examples = metrics.get("num-examples")
    if not isinstance(examples, int) or not 1 <= examples <= most:
        raise ValueError(f"num-examples is {examples!r}, expected a positive number{f' up to {most}' if most < MANY else ''}")
    if "loss" not in metrics or any(isinstance(v, list) for v in metrics.values()):
        raise ValueError(f"metrics {sorted(metrics)}: expected single numbers, loss among them")
    own = metrics.keys() - MEASURED
    if len(own) > OWN or not all(NAME.fullmatch(name) and abs(metrics[name]) <= MANY for name in own):
        raise ValueError(f"metrics {str(sorted(own))[:80]}: expected up to {OWN} of its own, plain names, up to 2^62")
    if isinstance(asked, Learn) and asked.lock and not metrics.get(PUSH, -1.0) >= 0:
        raise ValueError(f"{PUSH} is {metrics.get(PUSH)!r}, expected 0 or more after training under a forget lock")
    judged = read(reply, Evaluation) if asked.before else None
    nbytes = sum(a.nbytes for a in arrays.values())
    full = {name: values.astype(np.float32) for name, values in arrays.items()}
    adapters = sent + full[ADAPTERS] if asked.half else full[ADAPTERS]
    return Update(client, adapters, full.get(STEP), metrics, judged, nbytes)


def _metrics(reply: Message) -> dict[str, Any]:
    """The numbers of an answer. Raises ValueError where there are none, or one is not finite."""
    if "metrics" not in reply.content.metric_records:
        raise ValueError(f"no metrics in the answer, but {sorted(reply.content)}")
    metrics = dict(reply.content.metric_records["metrics"])
    for name, value in metrics.items():
        if not np.isfinite(np.asarray(value, dtype=np.float64)).all():
            raise ValueError(f"metric {name[:60]!r} is not finite")
    return metrics
