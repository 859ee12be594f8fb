"""MoDe: draw the model towards one that never knew, and let that one say what the forgotten pairs should look like.

Zhao et al., Federated unlearning with momentum degradation, IEEE IoT Journal 2023. Two steps in turn:

    degradation (odd rounds)    retained clients train theta_deg, fresh from theta_0;  theta <- m theta + (1 - m) theta_deg
    memory guidance (even)      retained clients InfoNCE on theta; forget clients fit theta's matches of their pairs to those
                                of theta_deg (clients/guidance.py), its pseudo labels

Adapted to InfoNCE: a pseudo label is theta_deg's distribution over the partners in a batch. Our re-implementation from the
published description.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from ease_flwr.strategies.assisted import AssistedParams, beside, forget_job, retained, step
from ease_flwr.strategies.base import Method, Vector
from pydantic import Field

from ease_flwr.config import searched
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.federation import Request
from ease_flwr.exchange.messages import ADAPTERS

if TYPE_CHECKING:
    from ease_flwr.store.history import History


class MoDe(Method):
    """Momentum degradation towards a fresh model, and memory guidance by it."""

    class Params(AssistedParams):
        rounds: int = Field(24, ge=2)
        """Exchanges of the forget phase, all of them; every other one degrades."""
        momentum: float = searched(0.95, (0.5, 0.8, 0.95), ge=0, le=1)
        """m, what stays of theta in a degradation step."""
        lr: float = searched(2e-4, (2e-4, 5e-4, 2e-3), gt=0)
        """AdamW learning rate of the forget clients."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "guidance")
    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "needed"

    def prepare(self, theta: Vector, history: History) -> Vector:
        self.degraded = self.context.theta_0
        return theta

    def requests(self, round: int) -> dict[str, Request]:
        requests = self.learners(round)
        if round % 2:
            return {n: replace(r, arrays={ADAPTERS: self.degraded}) for n, r in requests.items()}
        requests = beside(self.context, requests, forget_job(self.context, round, "guidance", self.params.train))
        teacher = {"teacher": self.degraded}
        return {n: replace(r, arrays=teacher) if n in self.context.forget_clients else r for n, r in requests.items()}

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        kept = retained(self.context, updates)
        if round % 2 == 0:
            return self.locked(round, kept + step(self.context, theta, updates))
        self.degraded = kept
        m = np.float32(self.params.momentum)
        return self.locked(round, m * theta + (1 - m) * self.degraded)
