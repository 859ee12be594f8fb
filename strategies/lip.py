"""Lip: flatten both encoders around what is to be forgotten (Kravets and Namboodiri, WACV 2025, arXiv 2407.07485).

    L = mean ||f(x + e) - f(x)|| / ||e|| + mean ||g(t + e) - g(t)|| / ||e||,   e ~ N(0, (sigma std)^2)

Adapted: the original synthesises samples of a class, here a forget client has its pairs; noise is added where the adapted part
of the image tower begins, and to the token embeddings. Our re-implementation.
"""

from __future__ import annotations

from typing import ClassVar

from ease_flwr.strategies.assisted import Assisted, AssistedParams

from ease_flwr.config import searched


class Lip(Assisted):
    """Lipschitz regularisation of both encoders on the forgotten pairs."""

    class Params(AssistedParams):
        lr: float = searched(1e-3, (5e-4, 1e-3, 2e-3, 5e-3), gt=0)
        """AdamW learning rate of the forget clients."""
        sigma: float = searched(0.5, (0.1, 0.5, 1.0), gt=0)
        """Noise, relative to the spread of what it is added to."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "lip")
