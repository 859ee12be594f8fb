"""Retraining from the start: the gold standard, and the price that every other method is to stay below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ease_flwr.strategies.base import Method, PhaseParams, Vector
from pydantic import Field

if TYPE_CHECKING:
    from ease_flwr.store.history import History


class Retrain(Method):
    """Learn again from theta_0 without what is to be forgotten."""

    class Params(PhaseParams):
        rounds: int | None = Field(None, ge=1)
        """Exchanges of the forget phase, all of them; None: as many as learning had rounds."""
        lr_end: float = Field(1.0, gt=0, le=1)
        """As in the base: here the rate does not fall, as it does not in the learn phase."""

    @classmethod
    def rounds_of(cls, params: Any, learnt: int) -> int:
        return params.rounds or learnt

    def prepare(self, theta: Vector, history: History) -> Vector:
        return self.context.theta_0
