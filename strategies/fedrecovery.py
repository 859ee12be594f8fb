"""FedRecovery: take back, without any training, what the leaving client added to each recorded round.

Zhang et al., IEEE TIFS 2023. With D_t the movement of the global adapters in round t, c_t the leaving clients' weighted updates
in it and a their share of the weights, a round without them would have moved by (D_t - c_t) / (1 - a); the residual is

    R_t = D_t - (D_t - c_t) / (1 - a)          p_t = ||D_t||^2 / sum_{s <= t} ||D_s||^2
    theta <- theta - factor sum_t p_t R_t + N(0, sigma^2)

Adapted: the paper has equal weights, ours are numbers of pairs; p_t counts its own round in the sum, so that the first is 1. A
circulating reproduction has factor 5, which is in no theorem. Our re-implementation from the published description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from ease_flwr.strategies.base import Method, PhaseParams, Vector
from pydantic import Field

from ease_flwr.config import searched

if TYPE_CHECKING:
    from ease_flwr.store.history import History


class FedRecovery(Method):
    """Subtract weighted gradient residuals of the recorded rounds, add noise; no training."""

    class Params(PhaseParams):
        rounds: int = Field(0, ge=0)
        """Exchanges of fine-tuning afterwards; the method itself has none."""
        factor: float = searched(2.0, (0.5, 1.0, 2.0, 5.0), gt=0)
        """Multiplies all residuals."""
        sigma: float = searched(0.0, (0.0, 0.001), ge=0)
        """Standard deviation of the noise on every adapter parameter."""

    scenarios: ClassVar[tuple[str, ...]] = ("client",)
    history: ClassVar[Literal["", "updates", "rounds"]] = "rounds"

    def prepare(self, theta: Vector, history: History) -> Vector:
        past, taken = 0.0, np.zeros(len(theta))
        leaving = self.context.leaving
        for columns in history.rounds():
            share = self.context.weight(leaving, columns)
            moved = np.asarray(np.sum(list(columns.values()), axis=0), dtype=np.float64)
            theirs = np.sum([c for n, c in columns.items() if n in leaving], axis=0, dtype=np.float64)
            past += float(moved @ moved)
            if past:
                taken += float(moved @ moved) / past * (moved - (moved - theirs) / (1 - share))
        noise = np.random.default_rng((self.context.experiment.seed, 31)).normal(0, self.params.sigma, len(theta))
        return np.asarray(theta - self.params.factor * taken + noise, dtype=np.float32)
