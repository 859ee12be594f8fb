"""A foil for EASE: as many random directions in place of the unique subspace."""

from __future__ import annotations

from typing import ClassVar, Literal

from ease_flwr.strategies.ease import Ease
from ease_flwr.strategies.gsd import GsdParams


class Random(GsdParams):
    """As EASE's, with another default of what is excised."""

    subspace: Literal["unique", "whole", "random"] = "random"
    """What is excised: as many random directions."""


class ExciseRandom(Ease):
    """Cut out a random subspace of the same dimension (foil)."""

    class Params(Ease.Params):
        gsd: Random = Random()

    scenarios: ClassVar[tuple[str, ...]] = ("client",)
    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "not asked"
