"""A foil for EASE: excision of the whole forget subspace, what is shared with others included, and no bilateral excision."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from strategies.ease import Ease


class ExciseAll(Ease):
    """Cut out everything the forgotten client's updates span (foil)."""

    class Params(Ease.Params):
        tau: float | None = Field(0.6, ge=0, le=1)
        """Decides how many directions the unique subspace has; what calibration mostly finds in the built-in world."""
        subspace: Literal["unique", "whole", "random"] = "whole"
        """What is excised: the whole forget subspace."""
        bke: bool = False
        """No bilateral excision."""

    scenarios: ClassVar[tuple[str, ...]] = ("client",)
    holders: ClassVar[Literal["not asked", "help", "needed"]] = "not asked"
