"""What methods with two kinds of work share: holders of what is to be forgotten run an objective of their own on it, while the
clients that keep something run InfoNCE. Their updates are averaged, the holders' steps are added."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from ease_flwr.core.config import Section, TrainConfig
from ease_flwr.core.federation import Request
from ease_flwr.core.messages import Instruction, Update
from strategies.base import Setting, Unlearning, Vector

if TYPE_CHECKING:
    from ease_flwr.core.history import History
    from ease_flwr.core.lock import ForgetLock


class Assisted(Unlearning):
    """The last of `objectives` is the holders'. Fields of Params beyond these four are the objective's options."""

    class Params(Section):
        rounds: int = Field(8, ge=1)
        """Exchanges of the forget phase, all of them."""
        lr: float = Field(5e-4, gt=0)
        """AdamW learning rate of the holders."""
        epochs: int = Field(1, ge=1)
        """Local epochs of the holders in each round."""
        batch: int = Field(64, ge=2)
        """Pairs in a holder's batch."""

    holders: ClassVar[Literal["not asked", "help", "needed"]] = "needed"

    def __init__(self, setting: Setting, params: Section, lock: ForgetLock | None = None) -> None:
        super().__init__(setting, params, lock)
        self.snapshot: dict[str, Vector] = {}
        """Arrays that a holder gets with its first message."""

    def prepare(self, theta: Vector, history: History) -> Vector:
        self.snapshot = {"request": theta}
        return theta

    def job(self, phase: str, round: int) -> Instruction:
        """What holders do in this round beside, or instead of, what the others do."""
        p = self.params
        train = TrainConfig(epochs=p.epochs, batch=p.batch, lr=p.lr)
        return self.order(phase, round, self.objectives[-1], train, self.options())

    def options(self) -> dict[str, float | str]:
        """What the holders' objective is told: the fields of Params beyond the four that all share."""
        names = [name for name in type(self.params).model_fields if name not in Assisted.Params.model_fields]
        return {name: getattr(self.params, name) for name in names}

    def order(
        self, phase: str, round: int, objective: str, train: TrainConfig, options: dict[str, float | str] | None = None
    ) -> Instruction:
        """A holder's job."""
        asked = {"forget": self.setting.forget, "options": options or {}}
        return Instruction(phase=phase, round=round, objective=objective, train=train, **asked)

    def instruct(self, phase: str, round: int) -> dict[str, Request]:
        requests = super().instruct(phase, round)
        return self.beside(requests, self.job(phase, round))

    def beside(self, requests: dict[str, Request], job: Instruction) -> dict[str, Request]:
        """These requests with a job for the holders: in the same exchange where they have one already."""
        for name in self.setting.holders:
            stays = requests.get(name)
            both = stays.instruction.model_copy(update={"beside": job}) if stays else job
            requests[name] = Request(both, once=self.snapshot)
        return requests

    def combine(self, theta: Vector, updates: dict[str, Update]) -> Vector:
        return self.locked(self.retained(updates) + self.step(theta, updates))

    def retained(self, updates: dict[str, Update]) -> Vector:
        """Mean of the clients that train on what they keep."""
        return self.mean({n: u for n, u in updates.items() if n in self.setting.clients})

    def step(self, theta: Vector, updates: dict[str, Update]) -> Vector:
        """What the holders changed, together (p,): the sum, or the mean where all move away from the same class."""
        helping = [u for n, u in updates.items() if n in self.setting.holders]
        steps = [u.adapters - theta if u.step is None else u.step for u in helping]
        if not steps:
            return np.zeros_like(theta)
        one_thing = self.setting.forget is not None and self.setting.forget.scenario == "class"
        return np.asarray(np.mean(steps, axis=0) if one_thing else np.sum(steps, axis=0), dtype=np.float32)
