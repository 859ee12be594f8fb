"""A foil for EASE: as many random directions in place of the unique subspace, and no bilateral excision."""

from __future__ import annotations

from typing import Literal

from strategies.excise_all import ExciseAll


class ExciseRandom(ExciseAll):
    """Cut out a random subspace of the same dimension (foil)."""

    class Params(ExciseAll.Params):
        subspace: Literal["unique", "whole", "random"] = "random"
        """What is excised: as many random directions."""
