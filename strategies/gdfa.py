"""GDFA, the simple form: subtract what several learnings of the forgotten pairs have in common.

After GDFA (CVPR 2026, no code): from nearby starts in a flat region the forget clients learn what is to be forgotten once
more; of those task vectors only entries whose signs agree are kept, and their mean is subtracted. With n_s random moves of
length radius ||theta - theta_0||:

    v_s = theta_s' - (theta + n_s)        theta <- theta - scale mean_s(v_s) [ |sum_s sign(v_s)| >= agreement S ]

then the retained clients go on. Our re-implementation from the published description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from ease_flwr.strategies.assisted import AssistedParams, learn_forgotten
from ease_flwr.strategies.base import Method, Vector, mean
from pydantic import Field

from ease_flwr.config import searched
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.federation import Request

if TYPE_CHECKING:
    from ease_flwr.store.history import History


class Gdfa(Method):
    """Negate the sign consensus of task vectors of the forgotten pairs, then fine-tune."""

    class Params(AssistedParams):
        probes: int = Field(3, ge=1)
        """S, exchanges in which the forget clients learn from a moved start."""
        radius: float = Field(0.05, ge=0)
        """Length of a random move, as a share of ||theta - theta_0||."""
        agreement: float = Field(1.0, ge=0, le=1)
        """Share by which signs must agree."""
        scale: float = searched(1.0, (0.5, 1.0, 2.0), gt=0)
        """Multiplies what is subtracted."""
        lr: float = searched(5e-3, (1e-3, 2e-3, 5e-3), gt=0)
        """AdamW learning rate of the forget clients."""

    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "needed"

    @classmethod
    def rounds_of(cls, params: Any, learnt: int) -> int:
        """As many to repair as other methods have, after the probes."""
        return super().rounds_of(params, learnt) + (params.probes if params.rounds is None else 0)

    def prepare(self, theta: Vector, history: History) -> Vector:
        self.request, self.vectors = theta, list[Vector]()
        self.random = np.random.default_rng((self.context.experiment.seed, 33))
        return self.moved()

    def moved(self) -> Vector:
        """A start near the model at the request."""
        noise = self.random.standard_normal(len(self.request))
        length = self.params.radius * np.linalg.norm(self.request - self.context.theta_0)
        return np.asarray(self.request + length / np.linalg.norm(noise) * noise, dtype=np.float32)

    def requests(self, round: int) -> dict[str, Request]:
        if round > self.params.probes:
            return self.learners(round)
        return learn_forgotten(self.context, round, self.params.train)

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        if round > self.params.probes:
            return self.averaged(round, updates)
        self.vectors.append(mean(updates) - theta)
        if round < self.params.probes:
            return self.moved()
        agree = np.abs(np.sign(self.vectors).sum(0)) >= self.params.agreement * len(self.vectors)
        self.facts["consensus"] = float(agree.mean())
        taken = np.where(agree, np.mean(self.vectors, axis=0), 0)
        return np.asarray(self.request - self.params.scale * taken, dtype=np.float32)
