"""CCU: cross-modal contrastive unlearning of the visual branch (arXiv 2509.23895), federated.

Only the image tower forgets. With f the image embedding now, f°, g° embeddings at the request, T the temperature:

    inverse      KL(softmax_j <f_i, g°_j>/T || u), u uniform over all j but i and its class: the old partner is the negative,
                 all other captions share the positive mass; the same against the image's own old embedding among old images
    retention    on other pairs, KL of the image-to-text distributions after and before, and 1 - <f, f°>
    separation   other images stay near their own old embedding and their class's, forgotten images leave them (SupCon where
                 there are labels, instances where there are none)

Adapted: the paper keeps the text tower's semantics by a loss; here the forget client's text tower is frozen, which keeps it
exactly, and retention is the relation of other images to it. Others are what the forget client keeps, or public pairs if it
leaves. Our re-implementation from the published description. It is the one-sided counterpart of EASE's bilateral excision.
"""

from __future__ import annotations

from typing import ClassVar

from ease_flwr.strategies.assisted import Assisted, AssistedParams
from pydantic import Field

from ease_flwr.config import searched


class Ccu(Assisted):
    """Visual-only contrastive unlearning with cross-modal retention and dual-set separation."""

    class Params(AssistedParams):
        lr: float = searched(1e-3, (5e-4, 1e-3, 2e-3, 5e-3), gt=0)
        """AdamW learning rate of the forget clients."""
        temperature: float = Field(0.05, gt=0)
        """T."""
        inverse: float = Field(1.0, ge=0)
        """Weight of selective visual unlearning; 0 switches it off."""
        retention: float = searched(3.0, (0.3, 1.0, 3.0), ge=0)
        """Weight of cross-modal retention; 0 switches it off."""
        separation: float = Field(0.3, ge=0)
        """Weight of dual-set contrastive separation; 0 switches it off."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "ccu")
