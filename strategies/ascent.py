"""Gradient ascent by the forget clients, bounded per pair where the partner is found no better than by chance.

The oldest idea of machine unlearning (e.g. Golatkar et al., CVPR 2020, as a baseline). Ascent on InfoNCE has no end; without a
bound it takes the retained side with it. L = mean [bound - CE]_+, see clients/ascent.py.
"""

from __future__ import annotations

from typing import ClassVar

from ease_flwr.strategies.assisted import Assisted, AssistedParams
from pydantic import Field

from ease_flwr.config import searched


class Ascent(Assisted):
    """Bounded gradient ascent on the forgotten pairs beside ordinary rounds."""

    class Params(AssistedParams):
        lr: float = searched(5e-4, (2e-4, 5e-4, 1e-3, 2e-3), gt=0)
        """AdamW learning rate of the forget clients."""
        bound: float = Field(0.0, ge=0)
        """Cross-entropy at which a pair is left alone, in nats; 0 is a blind guess in its batch."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "ascent")
