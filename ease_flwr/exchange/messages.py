"""What the server asks of a client: five kinds of instruction, each with its own fields, and how they travel.

An instruction is a JSON string in a Flower ConfigRecord; arrays travel in one ArrayRecord whose first entry is the adapter
vector. `kind` tells the kinds apart. What comes back is in answers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from ease_flwr.config import ForgetSet, Section, TrainConfig, Union, told
from ease_flwr.store.tombstones import Told

ADAPTERS, STEP = "adapters", "step"
"""Names of arrays in an answer: the trained adapters, and what a second job changed."""

SEED_NAMES = {"continuation": "hold"}
"""Phases whose random numbers are drawn under an older name, so that results of earlier versions stay what they are."""


def seed_name(phase: str) -> str:
    """The name under which a phase draws its random numbers."""
    return SEED_NAMES.get(phase, phase)


class Evaluate(Section):
    """Count hits on the client's own pairs, under every model that was sent."""

    kind: Literal["evaluate"] = "evaluate"
    forget: Union = ()
    """What is to be forgotten: it decides which pairs count as forget set and which as retain set."""
    split: Literal["validation", "test"] = "test"
    similarity: bool = False
    """Whether the cosine of each pair is sent back, not only the counts."""


class Training(Section):
    """What the two kinds of training have in common."""

    phase: str
    """Name of the phase; with the round and the client's name it decides the order of the data."""
    round: int
    """Counted from 1 inside the phase."""
    order: int = Field(0, ge=0)
    """Another number is another order of the same data: what a second retraining differs by."""
    objective: str = "contrastive"
    """Module of clients/ that gives the loss."""
    train: TrainConfig
    """Local epochs, batch, learning rate, gradient clipping."""
    options: Mapping[str, float | str] = {}
    """The objective's own settings."""
    half: bool = False
    """Whether the adapters come in float16, and what changed goes back in float16 in their place."""
    before: Evaluate | None = None
    """An evaluation of the adapters as they come, done first in the same exchange."""


class Forget(Training):
    """Train an objective of forgetting on the pairs of a forget set."""

    kind: Literal["forget"] = "forget"
    forget: ForgetSet
    """What is being forgotten."""
    without: Union = ()
    """What was forgotten before: no longer there for any job."""


class Returning(Section):
    """Fresh pairs about forgotten knowledge, which only a simulation can draw."""

    about: Union
    count: int = Field(ge=1)


class Learn(Training):
    """Train on the pairs that stay."""

    kind: Literal["learn"] = "learn"
    without: Union = ()
    """Pairs to leave out. A client that holds none of them is told nothing."""
    only: Union = ()
    """Train on these pairs alone (gdfa); none: on all that stay."""
    returning: Returning | None = None
    """Further pairs to train on."""
    lock: str = ""
    """Hash of the forget lock to train under; its directions travel once and are kept in the client's state."""
    tensors: tuple[int, ...] = ()
    """Positions of the adapter tensors that may move; none named: all."""
    proximal: float = 0.0
    """mu of FedProx: the loss has mu/2 ||theta - theta_t||^2 added (Li et al., arXiv 1812.06127, eq. 2)."""
    beside: Forget | None = None
    """A second job from the same adapters, done in the same exchange; its change of the adapters comes back as `step`."""


class Audit(Section):
    """Answer every question of an audit about every model that was sent."""

    kind: Literal["audit"] = "audit"
    forget: Union
    split: Literal["validation", "test"] = "test"
    probes: tuple[str, ...] = ()
    """What is asked of clients with pairs to be forgotten, beside ranks and similarities: methods of clients/audit.py."""
    train: TrainConfig
    """How the forgotten pairs are learnt again."""
    lock: str = ""
    """Hash of the forget lock, as in Learn: along its directions a step of learning again is measured; none: it is not."""


class Hello(Section):
    """Say who you are, and how many of your pairs each of these forget sets concerns."""

    kind: Literal["hello"] = "hello"
    forget: Union = ()
    """In the order of their requests: a pair counts for the first that names it."""
    served: int = Field(0, ge=0)
    """How many of these are done: a host remembers what was withdrawn (store/tombstones.py)."""
    told: Told | None = None
    """What the server remembers of this host."""


Instruction = Annotated[Learn | Forget | Evaluate | Audit | Hello, Field(discriminator="kind")]
_INSTRUCTION: TypeAdapter[Any] = TypeAdapter(Instruction)


def as_told(job: Any, client: str) -> Any:
    """An instruction as this client gets it: of single pairs that are to be forgotten it is told its own.

    Returning pairs are told whole: only a simulation has them.
    """
    changes: dict[str, Any] = {}
    for name in type(job).model_fields:
        value = getattr(job, name)
        if isinstance(value, ForgetSet):
            changes[name] = value.told(client)
        elif isinstance(value, tuple) and value and isinstance(value[0], ForgetSet):
            whole = isinstance(job, Hello) or name == "only"  # a set that names nothing of this client still has its place
            changes[name] = tuple(s.told(client) for s in value) if whole else told(value, client)
        elif isinstance(value, Evaluate | Forget):
            changes[name] = as_told(value, client)
    return job.model_copy(update=changes) if changes else job


def pack(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Arrays by name as Flower sends them."""
    return ArrayRecord({k: Array(np.ascontiguousarray(v)) for k, v in arrays.items()})


def unpack(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Inverse of `pack`."""
    return {k: a.numpy() for k, a in record.items()}


def message(job: Any, arrays: Mapping[str, NDArray[Any]], node: int, deadline: float) -> Message:
    """The message that carries an instruction to a node. deadline: seconds until Flower reports it as lost."""
    content = RecordDict({"arrays": pack(arrays), "config": ConfigRecord({"instruction": job.model_dump_json()})})
    verbs = {"learn": "train", "forget": "train", "evaluate": "evaluate", "audit": "evaluate", "hello": "query"}
    group = f"{job.phase}-{job.round}" if isinstance(job, Training) else job.kind
    return Message(content, dst_node_id=node, message_type=verbs[job.kind], ttl=deadline, group_id=group)


def read_instruction(config: Mapping[str, Any]) -> Any:
    """The instruction in a NumPyClient's config. Raises ValueError with one line when there is none."""
    try:
        return _INSTRUCTION.validate_json(str(config["instruction"]))
    except (KeyError, ValidationError) as error:
        raise ValueError(f"instruction not understood: {' '.join(str(error).split())}") from None
