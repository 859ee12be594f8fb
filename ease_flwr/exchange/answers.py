"""What a client answers, one type a kind of instruction, and the checks that every answer passes before it is kept or used."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from ease_flwr.config import NAME, Section
from ease_flwr.exchange.judgement import Evaluation
from ease_flwr.exchange.messages import ADAPTERS, STEP, Forget, Learn, pack, unpack

MANY = 2**62
MOST_PAIRS = 2**40
"""So many training pairs no client has."""
ANSWER_BYTES = 2**28
"""A longer answer is not read."""
NUMPY = b"\x93NUMPY"
"""What an array of NumPy begins with; its archives begin otherwise."""
HEADER_BYTES = 1024
"""Of an array as it travels, at most."""
Digest = Annotated[str, Field(max_length=128)]
LABELS = "labels"
"""Metric of every training that forgets classes: how many of them this client knows."""
MEASURED = frozenset(("num-examples", "loss", "steps", "memory", "seconds", "load_seconds", "process_seconds", LABELS))
"""Metrics of every training answer. Others are the objective's own, what its `finish` returns."""
COUNTS = frozenset(("steps", "memory", LABELS))
"""Metrics that are no less than 0."""
OWN = 32
"""An objective may have so many of its own."""
PUSH = "lock_push"
"""Metric of every training under a forget lock: G of clients/locking.py."""


class Present(Section):
    """Answer to a roll call."""

    name: str
    pairs: int = Field(ge=0, le=MOST_PAIRS)
    """Training pairs."""
    forget: tuple[NonNegativeInt, ...] = ()
    """How many of them each forget set is the first to name."""
    refused: tuple[str, ...] = ()
    """Why a forget set does not fit this client's data, "" where it does."""
    unknown: tuple[tuple[str, ...], ...] = ()
    """Of each forget set, labels and single pairs that name none of its training pairs."""
    ids: tuple[tuple[str, ...], ...] = ()
    """Of each forget set, ids of the single pairs of this client that it names, and of their pictures; of others none."""
    data: Digest = ""
    """Digest of the content of its training pairs; "" in a simulation."""
    barred: int = Field(0, ge=0)
    """Pairs that it leaves out, as they were withdrawn, and that no forget set names: they are not among `pairs`."""
    code: Digest
    base: Digest
    threads: int = Field(1, ge=1, le=2**20)
    smallest: int = Field(1, ge=1, le=MOST_PAIRS)
    """How many of its pairs a result of training must be about, as its owner says; it refuses others."""

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
        text = records["answer"]["json"]
        if not isinstance(text, str) or len(text) > ANSWER_BYTES:
            raise ValueError(f"not a text of at most {ANSWER_BYTES} characters")
        return json.loads(text, parse_constant=_refuse)
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
    arrays = _arrays(reply, kinds, sent.shape)
    metrics = _metrics(reply)
    examples = metrics.get("num-examples")
    if not isinstance(examples, int) or not 1 <= examples <= most:
        raise ValueError(f"num-examples is {examples!r}, expected a positive number{f' up to {most}' if most < MANY else ''}")
    if "loss" not in metrics or any(isinstance(v, list) for v in metrics.values()):
        raise ValueError(f"metrics {sorted(metrics)}: expected single numbers, loss among them")
    if wrong := [k for k in sorted(MEASURED & metrics.keys()) if not (0 if k in COUNTS else -MANY) <= metrics[k] <= MANY]:
        raise ValueError(f"{wrong[0]} is {metrics[wrong[0]]!r}, which cannot be")
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


def _arrays(reply: Message, kinds: Mapping[str, np.dtype[Any]], shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """The arrays of an answer, all of this shape. Raises ValueError; what is longer than it can be is not unpacked."""
    records = list(reply.content.array_records.values())
    if len(records) != 1 or tuple(records[0]) != tuple(kinds):
        raise ValueError(f"expected one record of {', '.join(kinds)}, got {str([list(a) for a in records])[:100]}")
    for name, array in records[0].items():
        most = int(np.prod(shape)) * kinds[name].itemsize + HEADER_BYTES
        if len(array.data) > most or not array.data.startswith(NUMPY):
            raise ValueError(f"{name}: {len(array.data)} bytes, expected an array of NumPy of at most {most}")
    try:
        arrays = unpack(records[0])
    except Exception as error:  # whatever NumPy makes of bytes that are not an array
        raise ValueError(f"not an array: {' '.join(str(error).split())[:100]}") from None
    for name, values in arrays.items():
        if values.shape != shape or values.dtype != kinds[name]:
            raise ValueError(f"{name} of shape {values.shape} and type {values.dtype}, expected {shape} {kinds[name]}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} not finite")
    return arrays


def _metrics(reply: Message) -> dict[str, Any]:
    """The numbers of an answer. Raises ValueError where there are none, or one is not finite."""
    if "metrics" not in reply.content.metric_records:
        raise ValueError(f"no metrics in the answer, but {sorted(reply.content)}")
    metrics = dict(reply.content.metric_records["metrics"])
    for name, value in metrics.items():
        if not np.isfinite(np.asarray(value, dtype=np.float64)).all():
            raise ValueError(f"metric {name[:60]!r} is not finite")
    return metrics
