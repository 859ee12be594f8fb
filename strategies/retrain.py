"""Retraining from the start: the gold standard, and the price that every other method is to stay below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ease_flwr.config import Section
from strategies.base import Method, Vector

if TYPE_CHECKING:
    from ease_flwr.store.history import History


class Retrain(Method):
    """Learn again from theta_0 without what is to be forgotten."""

    class Params(Section):
        rounds: int = Field(0, ge=0)
        """Exchanges of the forget phase, all of them; 0: as many as learning had rounds."""

    @property
    def rounds(self) -> int:
        return self.params.rounds or self.context.learnt

    def prepare(self, theta: Vector, history: History) -> Vector:
        return self.context.theta_0
