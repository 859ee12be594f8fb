"""What methods with two kinds of work share: forget clients run an objective of their own on what is to be forgotten, while the
clients that stay run InfoNCE. The updates of those that stay are averaged, the steps of the forget clients are added.

The functions are the pieces; `Assisted` puts them together in the way that most methods want.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from ease_flwr.strategies.base import Method, MethodContext, PhaseParams, Vector, mean
from pydantic import Field

from ease_flwr.config import ForgetSet, TrainConfig, Union
from ease_flwr.exchange.answers import LABELS, Update
from ease_flwr.exchange.federation import Request
from ease_flwr.exchange.messages import Forget, Learn

if TYPE_CHECKING:
    from ease_flwr.store.history import History

Options = Mapping[str, float | str]


def forget_job(
    context: MethodContext, round: int, objective: str, train: TrainConfig, options: Options | None = None
) -> Forget:
    """A forget client's job: train this objective of clients/ on what is to be forgotten."""
    assert context.forget is not None
    return Forget(
        phase=context.phase, round=round, objective=objective, train=train, options=options or {}, forget=context.forget
    )


def beside(
    context: MethodContext, requests: Mapping[str, Request], job: Forget, once: Mapping[str, Vector] | None = None
) -> dict[str, Request]:
    """These requests with a job for the forget clients: in the same exchange where they have one already.

    once: arrays that a forget client gets with its first message.
    """
    found = dict(requests)
    for name in context.forget_clients:
        own = job.model_copy(update={"without": forgotten_before(context, name)})
        stays: Any = found[name].instruction if name in found else None
        told = found[name].once if stays else {}
        found[name] = Request(stays.model_copy(update={"beside": own}) if stays else own, once={**told, **(once or {})})
    return found


def learn_forgotten(context: MethodContext, round: int, train: TrainConfig) -> dict[str, Request]:
    """The forget clients, learning by InfoNCE what is to be forgotten, and nothing else."""
    assert context.forget is not None
    job = Learn(phase=context.phase, round=round, train=train, only=(context.forget,))
    jobs = {n: job.model_copy(update={"without": forgotten_before(context, n)}) for n in context.forget_clients}
    return {n: Request(own) for n, own in jobs.items()}


def forgotten_before(context: MethodContext, name: str) -> Union:
    """What a client leaves out in every job, for it was forgotten by an earlier request."""
    return tuple(s for s in context.without.get(name, ()) if s != context.forget)


def retained(context: MethodContext, updates: Mapping[str, Update]) -> Vector:
    """Weighted mean of the clients that train on what they keep, (p,)."""
    return mean({n: u for n, u in updates.items() if n in context.clients})


def step(context: MethodContext, theta: Vector, updates: Mapping[str, Update]) -> Vector:
    """What the forget clients changed, together, (p,): the sum. Where they move away from the same classes it is divided by how
    many of them know a class on average, so that a class is moved away from once on average."""
    helping = [u for n, u in updates.items() if n in context.forget_clients]
    steps = [u.adapters - theta if u.step is None else u.step for u in helping]
    if not steps:
        return np.zeros_like(theta)
    return np.asarray(np.sum(steps, axis=0) / _times(context.forget, helping), dtype=np.float32)


def _times(forget: ForgetSet | None, helping: Sequence[Update]) -> float:
    """How often one thing is moved away from: by how many of these clients a class is known on average, or once."""
    if forget is None or forget.scenario != "class":
        return 1.0
    classes = len(forget.targets)
    known = [min(classes, max(1, int(u.metrics.get(LABELS, classes)))) for u in helping]
    return max(1.0, sum(known) / classes)


class AssistedParams(PhaseParams):
    """The settings that all assisted methods share."""

    lr: float = Field(5e-4, gt=0)
    """AdamW learning rate of the forget clients."""
    epochs: int = Field(1, ge=1)
    """Local epochs of the forget clients in each round."""
    batch: int = Field(64, ge=2)
    """Pairs in a forget client's batch."""

    @property
    def train(self) -> TrainConfig:
        """How forget clients train."""
        return TrainConfig(epochs=self.epochs, batch=self.batch, lr=self.lr)

    @property
    def options(self) -> dict[str, float | str]:
        """What the forget clients' objective is told: the fields beyond these."""
        shared = AssistedParams.model_fields
        return {name: getattr(self, name) for name in type(self).model_fields if name not in shared}


class Assisted(Method):
    """In every round the forget clients run the last of `objectives`, beside the InfoNCE of the others."""

    class Params(AssistedParams):
        """A method of its own adds what its objective is told."""

    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "needed"

    def prepare(self, theta: Vector, history: History) -> Vector:
        self.snapshot = {"request": theta}
        return theta

    def requests(self, round: int) -> dict[str, Request]:
        p = self.params
        job = forget_job(self.context, round, self.objectives[-1], p.train, p.options)
        return beside(self.context, self.learners(round), job, self.snapshot)

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        return self.locked(round, retained(self.context, updates) + step(self.context, theta, updates))
