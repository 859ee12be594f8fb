"""MoDe: draw the model towards one that never knew, and let that one say what the forgotten pairs should look like.

Zhao et al., Federated unlearning with momentum degradation, IEEE IoT Journal 2023. Two steps in turn:

    degradation (odd rounds)    retained clients train theta_deg, fresh from theta_0;  theta <- m theta + (1 - m) theta_deg
    memory guidance (even)      retained clients InfoNCE on theta; holders fit theta's matches of their pairs to those of
                                theta_deg (clients/guidance.py), its pseudo labels

Adapted to InfoNCE: a pseudo label is theta_deg's distribution over the partners in a batch. Our re-implementation from the
published description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from ease_flwr.core.config import searched
from ease_flwr.core.federation import Request
from ease_flwr.core.messages import ADAPTERS, Update
from strategies._assisted import Assisted
from strategies.base import Unlearning, Vector

if TYPE_CHECKING:
    from ease_flwr.core.history import History


class MoDe(Assisted):
    """Momentum degradation towards a fresh model, and memory guidance by it."""

    class Params(Assisted.Params):
        rounds: int = Field(24, ge=2)
        """Exchanges of the forget phase, all of them; every other one degrades."""
        momentum: float = searched(0.95, (0.5, 0.8, 0.95), ge=0, le=1)
        """m, what stays of theta in a degradation step."""
        lr: float = searched(2e-4, (2e-4, 5e-4, 2e-3), gt=0)
        """AdamW learning rate of the holders."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "guidance")

    def prepare(self, theta: Vector, history: History) -> Vector:
        self.degraded = self.setting.theta_0
        return theta

    def instruct(self, phase: str, round: int) -> dict[str, Request]:
        if round % 2:
            requests = Unlearning.instruct(self, phase, round)
            return {n: Request(r.instruction, arrays={ADAPTERS: self.degraded}) for n, r in requests.items()}
        requests = super().instruct(phase, round)
        teacher = {"teacher": self.degraded}
        return {n: Request(r.instruction, arrays=teacher) if n in self.setting.holders else r for n, r in requests.items()}

    def options(self) -> dict[str, float | str]:
        return {}

    def combine(self, theta: Vector, updates: dict[str, Update]) -> Vector:
        if self.round % 2 == 0:
            return super().combine(theta, updates)
        self.degraded = self.retained(updates)
        m = np.float32(self.params.momentum)
        return self.locked(m * theta + (1 - m) * self.degraded)
