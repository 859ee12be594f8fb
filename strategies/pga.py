"""PGA: the leaving client climbs its own loss, inside a ball around what the others made without it.

Halimi et al., Federated unlearning: how to erase a client in FL?, 2022 (arXiv 2207.05521). With theta_T the last global model,
theta_u the leaving client's last local one and a its share of the weights,

    theta_ref = (theta_T - a theta_u) / (1 - a)     radius = sqrt(||theta_ref - theta_0||^2 / 3)
    the forget client: from theta_ref gradient ascent on its pairs, projected on the ball after each step,
    until ||theta - theta_u||^2 > stop ||theta_u - theta_0||^2;  then the others go on

Adapted: the released code compares with the squared distance to a random model and stops at 2.2, tuned on MNIST; theta_0
stands for the random model here and the stop is relative. A step is AdamW's, as everywhere in this repository.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from ease_flwr.strategies.assisted import AssistedParams, beside, forget_job
from ease_flwr.strategies.base import Method, Vector
from pydantic import Field

from ease_flwr.config import searched
from ease_flwr.exchange.federation import Request

if TYPE_CHECKING:
    from ease_flwr.store.history import History


class Pga(Method):
    """Projected gradient ascent by the leaving client in one exchange, then fine-tuning by the others."""

    class Params(AssistedParams):
        stop: float = searched(0.5, (0.1, 0.5, 2.0), gt=0)
        """Squared distance from the forget client's own last model at which it stops, relative to that model's way."""
        lr: float = searched(1e-3, (5e-4, 1e-3, 5e-3), gt=0)
        """AdamW learning rate of the forget clients."""
        epochs: int = Field(5, ge=1)
        """Local epochs of the forget clients."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "projected_ascent")
    scenarios: ClassVar[tuple[str, ...]] = ("client",)
    history: ClassVar[Literal["", "updates", "rounds"]] = "rounds"
    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "needed"

    def prepare(self, theta: Vector, history: History) -> Vector:
        leaving = self.context.leaving
        last, own, share = self.context.theta_0, self.context.theta_0, 0.0
        for columns in history.rounds():
            theirs = [c for n, c in columns.items() if n in leaving]
            if theirs:
                share = self.context.weight(leaving, columns)
                own = last + np.sum(theirs, axis=0) / np.float32(share)
            last = last + np.sum(list(columns.values()), axis=0)
        reference = np.asarray((last - share * own) / (1 - share), dtype=np.float32)
        start = self.context.theta_0
        self.radius = float(np.linalg.norm(reference - start)) / 3**0.5
        self.limit = self.params.stop * float(np.sum((own - start) ** 2))
        self.once = {"centre": reference, "own": np.asarray(own, dtype=np.float32)}
        return reference

    def requests(self, round: int) -> dict[str, Request]:
        if round > 1:
            return self.learners(round)
        p = self.params
        train = self.context.experiment.learn.model_copy(update={"epochs": p.epochs, "batch": p.batch, "lr": p.lr, "clip": 5.0})
        ball = {"radius": self.radius, "limit": self.limit}
        return beside(self.context, {}, forget_job(self.context, round, "projected_ascent", train, ball), self.once)
