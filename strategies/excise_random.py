"""A foil for EASE: as many random directions in place of the unique subspace, and no bilateral excision."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from strategies.ease import Ease


class ExciseRandom(Ease):
    """Cut out a random subspace of the same dimension (foil)."""

    class Params(Ease.Params):
        tau: float | None = Field(0.6, ge=0, le=1)
        """Decides how many directions the unique subspace has; what calibration mostly finds in the built-in world."""
        subspace: Literal["unique", "whole", "random"] = "random"
        """What is excised: as many random directions."""
        bke: bool = False
        """No bilateral excision."""

    scenarios: ClassVar[tuple[str, ...]] = ("client",)
    holders: ClassVar[Literal["not asked", "help", "needed"]] = "not asked"
