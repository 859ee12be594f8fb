"""A foil for EASE: as many random directions in place of the unique subspace, and no bilateral excision."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from strategies.ease import BkeParams, Ease
from strategies.gsd import GsdParams


class Random(GsdParams):
    """As EASE's, with another default of what is excised."""

    tau: float | None = Field(0.6, ge=0, le=1)
    """Decides how many directions the unique subspace has; what calibration mostly finds in the built-in world."""
    subspace: Literal["unique", "whole", "random"] = "random"
    """What is excised: as many random directions."""


class Off(BkeParams):
    """As EASE's, but off."""

    enabled: bool = False
    """No bilateral excision."""


class ExciseRandom(Ease):
    """Cut out a random subspace of the same dimension (foil)."""

    class Params(Ease.Params):
        gsd: Random = Random()
        bke: Off = Off()

    scenarios: ClassVar[tuple[str, ...]] = ("client",)
    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "not asked"
