"""MultiDelete, federated: forgotten pairs become like mismatched ones, everything by itself stays what it was.

Cheng and Amiri, ECCV 2024 (arXiv 2311.12047). Three terms, with embeddings at the request marked by a degree sign:

    decouple   MSE of <f, g> on forgotten pairs to <f°, g°'> with another pair's partner, both ways     modality decoupling
    fused      || [f; g] - [f°; g°] ||^2 on other pairs                                             multimodal retention
    single     || f - f° ||^2 + || g - g° ||^2 on forgotten pairs                                    unimodal retention

Adapted: CLIP has no fusion encoder, the concatenated embeddings stand for its output; the original is centralised, here the
forget client has the first and third term and, as others, what it keeps or public pairs, while retained clients run InfoNCE.
Re-implemented (the released retrieval task does not run: its unimodal term uses an undefined name).
"""

from __future__ import annotations

from typing import ClassVar

from ease_flwr.strategies.assisted import Assisted, AssistedParams
from pydantic import Field

from ease_flwr.config import searched


class MultiDelete(Assisted):
    """Modality decoupling with unimodal and multimodal retention."""

    class Params(AssistedParams):
        lr: float = searched(2e-4, (2e-4, 5e-4, 1e-3, 2e-3), gt=0)
        """AdamW learning rate of the forget clients."""
        decouple: float = Field(1.0, ge=0)
        """Weight of modality decoupling."""
        fused: float = Field(1.0, ge=0)
        """Weight of multimodal knowledge retention."""
        single: float = searched(0.1, (0.01, 0.1, 1.0), ge=0)
        """Weight of unimodal knowledge retention."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "multidelete")
