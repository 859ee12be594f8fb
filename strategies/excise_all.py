"""A foil for EASE: excision of the whole forget subspace, what is shared with others included, and no bilateral excision."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from strategies.ease import BkeParams, Ease
from strategies.gsd import GsdParams


class Whole(GsdParams):
    """As EASE's, with another default of what is excised."""

    tau: float | None = Field(0.6, ge=0, le=1)
    """Decides how many directions the unique subspace has; what calibration mostly finds in the built-in world."""
    subspace: Literal["unique", "whole", "random"] = "whole"
    """What is excised: the whole forget subspace."""


class Off(BkeParams):
    """As EASE's, but off."""

    enabled: bool = False
    """No bilateral excision."""


class ExciseAll(Ease):
    """Cut out everything the forgotten client's updates span (foil)."""

    class Params(Ease.Params):
        gsd: Whole = Whole()
        bke: Off = Off()

    scenarios: ClassVar[tuple[str, ...]] = ("client",)
    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "not asked"
