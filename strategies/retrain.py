"""Retraining from the start: the gold standard, and the price that every other method is to stay below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ease_flwr.core.config import Section
from strategies.base import Unlearning, Vector

if TYPE_CHECKING:
    from ease_flwr.core.history import History


class Retrain(Unlearning):
    """Learn again from theta_0 without what is to be forgotten."""

    class Params(Section):
        rounds: int = Field(40, ge=1)
        """Exchanges of the forget phase, all of them; the experiments of this repository learn for as many."""

    def prepare(self, theta: Vector, history: History) -> Vector:
        return self.setting.theta_0
