"""A foil for EASE: excision of the whole forget subspace, what is shared with others included."""

from __future__ import annotations

from typing import ClassVar, Literal

from ease_flwr.strategies.ease import Ease
from ease_flwr.strategies.gsd import GsdParams


class Whole(GsdParams):
    """As EASE's, with another default of what is excised."""

    subspace: Literal["unique", "whole", "random"] = "whole"
    """What is excised: the whole forget subspace."""


class ExciseAll(Ease):
    """Cut out everything the forgotten client's updates span (foil)."""

    class Params(Ease.Params):
        gsd: Whole = Whole()

    scenarios: ClassVar[tuple[str, ...]] = ("client",)
    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "not asked"
