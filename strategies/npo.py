"""NPO: negative preference optimisation of the forgotten pairs (Zhang et al., COLM 2024, arXiv 2404.05868, eq. 3).

    L = (2 / beta) mean log(1 + (p / p_0)^beta)

Adapted from language models: p is the softmax probability of the true partner in the batch, both directions, p_0 the same under
the model at the request. Its gradient fades as p falls, which bounds it where plain ascent is not.
"""

from __future__ import annotations

from typing import ClassVar

from ease_flwr.strategies.assisted import Assisted, AssistedParams

from ease_flwr.config import searched


class Npo(Assisted):
    """Negative preference optimisation on the forgotten pairs beside ordinary rounds."""

    class Params(AssistedParams):
        lr: float = searched(5e-4, (2e-4, 5e-4, 1e-3, 2e-3), gt=0)
        """AdamW learning rate of the forget clients."""
        beta: float = searched(0.5, (0.1, 0.5, 1.0), gt=0)
        """How soon it fades; towards 0 it is gradient ascent."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "npo")
