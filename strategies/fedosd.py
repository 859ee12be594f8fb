"""FedOSD: a forgetting step that conflicts with nobody who stays, then recovery that may not go back.

Pan et al., AAAI 2025. The forget clients minimise the unlearning cross-entropy -log(1 - p/2) (clients/uce.py), bounded where
plain ascent is not. With g_u their pseudo-gradient, rows of A the retained clients' (InfoNCE), g_a = theta - theta_request:

    forgetting    d = g_u - A^T (A A^T)^+ A g_u,  rescaled to ||g_u||        theta <- theta - step d
    recovery      g <- g - (g . g_a / ||g_a||^2) g_a,  rescaled to ||g||     theta <- theta - mean g

A pseudo-gradient is the way back from a client's local epoch, theta - theta_k. The projection in recovery is made always, as in
the released code. Singular values below 1e-6 of the largest are cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from ease_flwr.strategies.assisted import AssistedParams, beside, forget_job, step
from ease_flwr.strategies.base import Method, Vector
from numpy.typing import NDArray
from pydantic import Field

from ease_flwr.config import searched
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.federation import Request

if TYPE_CHECKING:
    from ease_flwr.store.history import History

Matrix = NDArray[np.float64]


class FedOSD(Method):
    """Orthogonal steepest descent of the unlearning loss, then gradient-projected recovery."""

    class Params(AssistedParams):
        rounds: int = Field(12, ge=2)
        """Exchanges of the forget phase, all of them: half of them forget, the rest recover."""
        step: float = searched(1.0, (0.3, 1.0, 2.0), gt=0)
        """Length of a forgetting step, relative to the forget clients' own."""
        lr: float = searched(5e-4, (5e-4, 1e-3, 2e-3), gt=0)
        """AdamW learning rate of the forget clients."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "uce")
    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "needed"

    def prepare(self, theta: Vector, history: History) -> Vector:
        self.request = theta
        return theta

    @property
    def forgetting(self) -> int:
        """Rounds that forget."""
        return self.rounds // 2

    def requests(self, round: int) -> dict[str, Request]:
        requests = self.learners(round)
        if round > self.forgetting:
            return requests
        return beside(self.context, requests, forget_job(self.context, round, "uce", self.params.train))

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        kept = {n: u for n, u in updates.items() if n in self.context.clients}
        rows = np.stack([theta - u.adapters for u in kept.values()]).astype(np.float64)
        if round <= self.forgetting:
            direction = conflict_free(-step(self.context, theta, updates).astype(np.float64), rows)
            return self.locked(round, (theta - self.params.step * direction).astype(np.float32))
        away = (theta - self.request).astype(np.float64)
        weights = np.array([u.examples for u in kept.values()]) / sum(u.examples for u in kept.values())
        rows = np.stack([conflict_free(row, away[None]) for row in rows])
        return self.locked(round, (theta - weights @ rows).astype(np.float32))


def conflict_free(gradient: Matrix, rows: Matrix) -> Matrix:
    """What of a gradient (p,) is orthogonal to all rows (K, p), rescaled to the gradient's length; zeros if nothing is."""
    left = gradient - rows.T @ (np.linalg.pinv(rows @ rows.T, rcond=1e-6) @ (rows @ gradient))
    norm = float(np.linalg.norm(left))
    before = float(np.linalg.norm(gradient))
    return left * (before / norm) if norm > 1e-9 * before else np.zeros_like(left)
