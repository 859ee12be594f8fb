"""The whole protocol between the two halves: an Instruction goes out, an Update comes back.

An Instruction is a JSON string in a Flower ConfigRecord; arrays travel in one ArrayRecord whose first entry is the
adapter vector. The server names an objective, the client loads the file of that name. An answer holds the trained adapters
and, where a second job was asked for, its change of the adapters as `step`; what the client counted on the adapters as they
came, where that was asked for, is among its metrics as "now/SET.kind".
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import ValidationError

from ease_flwr.core.config import NAME, ForgetConfig, Section, TrainConfig

ADAPTERS, STEP = "adapters", "step"
NOW = "now"
"""What the adapters as they came are called in a judgement of them."""
MANY = 2**62


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
    forget: ForgetConfig | None = None
    """What is being forgotten, where the client must know it: it trains on its other pairs only. Nobody else is told."""
    part: Literal["retain", "forget"] = "retain"
    """Training: the pairs that stay, or those that are to be forgotten (GSD's probe rounds)."""
    overlap: int = 0
    """Fresh pairs about forgotten knowledge to train on as well (hold phase of one retained client)."""
    lock: str = ""
    """Hash of the forget lock to train under; its directions travel once and are kept in the client's state."""
    options: Mapping[str, float | str] = {}
    """The objective's own settings."""
    tensors: tuple[int, ...] = ()
    """Training: positions of the adapter tensors that may move; none named: all."""
    proximal: float = 0.0
    """Training: mu of FedProx, the loss has mu/2 ||theta - theta_t||^2 added (Li et al., arXiv 1812.06127, eq. 2)."""
    half: bool = False
    """Training: the adapters come in float16, and what changed goes back in float16 in their place."""
    beside: Instruction | None = None
    """A second job from the same adapters, done in the same exchange; its change of the adapters comes back as `step`."""
    before: Instruction | None = None
    """An evaluation of the adapters as they come, done before training in the same exchange."""
    split: str = "test"
    """Evaluation: "validation" or "test"."""
    similarity: bool = False
    """Evaluation: whether the similarity of each pair is sent back, not only the counts."""
    probes: tuple[str, ...] = ()
    """Evaluation by clients/audit.py: what is asked of who holds pairs to be forgotten, beside ranks and similarities."""
    level: bool = False
    """Evaluation: whether who holds pairs to be forgotten says how well they match beside public ones."""


@dataclass(frozen=True)
class Update:
    """A valid answer of one client."""

    client: str
    adapters: NDArray[np.float32]
    """The adapter vector after training, (p,)."""
    step: NDArray[np.float32] | None
    """What the second job changed, (p,), if one was asked for."""
    metrics: dict[str, Any]
    judged: dict[str, Any] = field(default_factory=dict)
    """What it counted on the adapters before training, if it was asked: "now/SET.kind" -> numbers."""
    nbytes: int = 0
    """Of the arrays as they came."""

    @property
    def examples(self) -> int:
        return int(self.metrics["num-examples"])

    def message(self) -> Message:
        """The adapters and their weight as a message of Flower's own kind, for its aggregation."""
        metrics = MetricRecord({"num-examples": self.examples})
        return Message(
            RecordDict({"arrays": pack({ADAPTERS: self.adapters}), "metrics": metrics}), dst_node_id=1, message_type="train"
        )


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


def read_update(
    client: str,
    reply: Message,
    sent: NDArray[np.float32],
    asked: Instruction,
    most: int = MANY,
) -> Update:
    """Check an answer to a training instruction. Raises ValueError: key set, shape, dtype, finiteness, counts, metric types.

    sent: the adapters it started from, (p,).  most: pairs the client has, so many examples it can have trained on.
    """
    keys, kind = (ADAPTERS, STEP) if asked.beside else (ADAPTERS,), np.dtype(np.float16 if asked.half else np.float32)
    records = list(reply.content.array_records.values())
    if len(records) != 1 or tuple(records[0]) != keys:
        raise ValueError(f"expected one record of {', '.join(keys)}, got {[list(a) for a in records]}")
    try:
        arrays = unpack(records[0])
    except Exception as error:  # whatever NumPy makes of bytes that are not an array
        raise ValueError(f"not an array: {' '.join(str(error).split())[:100]}") from None
    for name, values in arrays.items():
        if values.shape != sent.shape or values.dtype != kind:
            raise ValueError(f"{name} of shape {values.shape} and type {values.dtype}, expected {sent.shape} {kind}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} not finite")
    metrics = read_metrics(reply)
    answers = {k: metrics.pop(k) for k in list(metrics) if asked.before and k.startswith(f"{NOW}/")}
    _check_answers(answers, (NOW,))
    examples = metrics.get("num-examples")
    if not isinstance(examples, int) or not 1 <= examples <= most:
        raise ValueError(f"num-examples is {examples!r}, expected a positive number{f' up to {most}' if most < MANY else ''}")
    if "loss" not in metrics or any(isinstance(v, list) for v in metrics.values()):
        raise ValueError(f"metrics {sorted(metrics)}: expected single numbers, loss among them")
    nbytes = sum(a.nbytes for a in arrays.values())
    full = {name: values.astype(np.float32) for name, values in arrays.items()}
    adapters = sent + full[ADAPTERS] if asked.half else full[ADAPTERS]
    return Update(client, adapters, full.get(STEP), metrics, answers, nbytes)


def read_metrics(reply: Message) -> dict[str, Any]:
    """The numbers of an answer. Raises ValueError where there are none, or one is not finite."""
    if "metrics" not in reply.content.metric_records:
        raise ValueError(f"no metrics in the answer, but {sorted(reply.content)}")
    metrics = dict(reply.content.metric_records["metrics"])
    for name, value in metrics.items():
        if not np.isfinite(np.asarray(value, dtype=np.float64)).all():
            raise ValueError(f"metric {name[:60]!r} is not finite")
    return metrics


def read_answers(reply: Message, models: Container[str]) -> dict[str, Any]:
    """Check an answer to an evaluation: "MODEL/SET.kind" -> numbers. Raises ValueError."""
    metrics = read_metrics(reply)
    metrics.pop("num-examples", None)
    _check_answers(metrics, models)
    return metrics


def _check_answers(answers: Mapping[str, Any], models: Container[str]) -> None:
    for key, value in answers.items():
        model, slash, about = key.partition("/")
        if not slash or model not in models:
            raise ValueError(f"metric {key[:60]!r} is about no model that was sent")
        if about.endswith(".counts"):
            counts = value if isinstance(value, list) and len(value) == 8 and all(isinstance(v, int) for v in value) else [-1]
            if min(counts) < 0 or max(counts[2:5]) > counts[0] or max(counts[5:]) > counts[1]:
                raise ValueError(f"metric {key[:60]!r} holds no counts of hits: {str(value)[:60]}")
        if about.endswith(".gallery") and isinstance(value, list):
            raise ValueError(f"metric {key[:60]!r} holds no size of a gallery: {str(value)[:60]}")
        if about.endswith((".similarity", ".level")) and not isinstance(value, list):
            raise ValueError(f"metric {key[:60]!r} is a single number")
        if about.endswith(".level") and len(value) != 3:
            raise ValueError(f"metric {key[:60]!r} holds {len(value)} numbers, expected 3")


def read_hello(reply: Message) -> dict[str, Any]:
    """Check an answer to a roll call. Raises ValueError."""
    said: dict[str, Any] = dict(reply.content.config_records["info"]) if "info" in reply.content.config_records else {}
    kinds = {"name": str, "pairs": int, "forget": int, "code": str, "base": str}
    if wrong := [k for k, kind in kinds.items() if not isinstance(said.get(k), kind)]:
        raise ValueError(f"a node answered the roll call without a usable {wrong[0]!r}: is it a client of this app?")
    if not NAME.fullmatch(said["name"]) or not 0 <= said["forget"] <= said["pairs"]:
        raise ValueError(f"a node calls itself {said['name'][:80]!r}, with {said['pairs']} pairs: neither can be used")
    return said


def metric_record(metrics: dict[str, Any]) -> MetricRecord:
    """Numbers and lists of numbers as Flower wants them (no NumPy scalars)."""
    return MetricRecord({k: v.item() if isinstance(v, np.generic) else v for k, v in metrics.items()})
