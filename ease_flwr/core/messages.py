"""The whole protocol between the two halves: an Instruction goes out, an Update comes back.

An Instruction is a JSON string in a Flower ConfigRecord; arrays travel in one ArrayRecord whose first entry is the
adapter vector. The server names an objective, the client loads the file of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import ValidationError

from ease_flwr.core.config import Section, TrainConfig

ADAPTERS = "adapters"


class Instruction(Section):
    """What one client is asked to do in one round."""

    phase: str
    """learn | forget | hold; with the round and the client's name it decides the order of the data."""
    round: int
    """Counted from 1 inside the phase."""
    objective: str = "contrastive"
    """Module of clients/ that gives the loss."""
    train: TrainConfig
    """Local epochs, batch, learning rate, gradient clipping."""
    targets: tuple[str, ...] = ()
    """Clients that are being forgotten, where the client must know it: evaluation, the overlap stream."""
    overlap: int = 0
    """Fresh pairs about forgotten knowledge to train on as well (hold phase of one retained client)."""
    lock: str = ""
    """Hash of the forget lock to train under; its directions travel once and are kept in the client's state."""
    options: Mapping[str, float] = {}
    """The objective's own settings."""
    split: str = "test"
    """Evaluation: "validation" or "test"."""
    similarity: bool = False
    """Evaluation: whether the similarity of each pair is sent back, not only the counts."""


@dataclass(frozen=True)
class Update:
    """A valid answer of one client. arrays: the client's adapter vector after training first."""

    client: str
    arrays: list[NDArray[Any]]
    metrics: dict[str, Any]
    message: Message
    """The message itself, for Flower's own aggregation."""

    @property
    def examples(self) -> int:
        return int(self.metrics["num-examples"])

    @property
    def adapters(self) -> NDArray[np.float32]:
        return self.arrays[0]


def pack(arrays: dict[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({k: Array(np.ascontiguousarray(v)) for k, v in arrays.items()})


def unpack(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    return {k: a.numpy() for k, a in record.items()}


def request(
    instruction: Instruction, arrays: dict[str, NDArray[Any]], node: int, kind: str, deadline: float, group: str
) -> Message:
    """The message that carries an instruction to a node. deadline: seconds until Flower reports it as lost."""
    content = RecordDict({"arrays": pack(arrays), "config": ConfigRecord({"instruction": instruction.model_dump_json()})})
    return Message(content, dst_node_id=node, message_type=kind, ttl=deadline, group_id=group)


def read_instruction(config: dict[str, Any]) -> Instruction:
    """The Instruction in a NumPyClient's config. Raises ValueError with one line when there is none."""
    try:
        return Instruction.model_validate_json(str(config["instruction"]))
    except (KeyError, ValidationError) as error:
        raise ValueError(f"instruction not understood: {' '.join(str(error).split())}") from None


def read_update(client: str, reply: Message, expected: tuple[int, ...]) -> Update:
    """Check an answer to a training instruction. Raises ValueError: key set, shape, dtype, finiteness, example count."""
    arrays = list(reply.content.array_records.values())
    metrics: dict[str, Any] = dict(reply.content["metrics"]) if "metrics" in reply.content else {}
    if len(arrays) != 1 or list(arrays[0]) != [ADAPTERS]:
        raise ValueError(f"expected one array {ADAPTERS!r}, got {[list(a) for a in arrays]}")
    values = unpack(arrays[0])[ADAPTERS]
    if values.shape != expected or values.dtype != np.float32:
        raise ValueError(f"adapters of shape {values.shape} and type {values.dtype}, expected {expected} float32")
    if not np.isfinite(values).all():
        raise ValueError("adapters are not finite")
    examples = metrics.get("num-examples")
    if not isinstance(examples, int) or examples < 1:
        raise ValueError(f"num-examples is {examples!r}, expected a positive number")
    return Update(client, [values], metrics, reply)


def metric_record(metrics: dict[str, Any]) -> MetricRecord:
    """Numbers and lists of numbers as Flower wants them (no NumPy scalars)."""
    return MetricRecord({k: v.item() if isinstance(v, np.generic) else v for k, v in metrics.items()})
