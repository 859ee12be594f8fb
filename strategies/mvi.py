"""MVI with contrastive semantic editing ("Beyond Sample-Level Forgetting", ICML 2026), federated.

On the forget client, on embeddings at the request:

    1. multimodal variational inference   z_c, on which image and text agree, by a product of experts; z_v, z_t of one modality
       each; decoders f^ = D_v(z_c, z_v), g^ = D_t(z_c, z_t); ELBO with cosine reconstruction, beta KL, and a cross-covariance
       penalty between z_c and z_v, z_t
    2. contrastive semantic editing       z_c of a forgotten pair is replaced (by the prior's mean or another pair's); decoded
       with its own z_v, z_t that gives targets f', g'. InfoNCE pulls f to f' with f°, g° as hard negatives, and g to g'
       likewise; other pairs keep their embeddings (1 - cosine)

Retained clients run InfoNCE. Our re-implementation from the published description; the original is centralised.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from ease_flwr.strategies.assisted import Assisted, AssistedParams
from pydantic import Field

from ease_flwr.config import searched


class Mvi(Assisted):
    """Variational factors and contrastive semantic editing of the association."""

    class Params(AssistedParams):
        lr: float = searched(1e-3, (5e-4, 1e-3, 2e-3, 5e-3), gt=0)
        """AdamW learning rate of the forget clients."""
        latent: int = Field(16, ge=1)
        """Dimensions of z_c, z_v and z_t."""
        steps: int = Field(300, ge=1)
        """Steps of fitting the variational model, once a request."""
        beta: float = Field(0.01, ge=0)
        """Weight of the KL terms."""
        decouple: float = Field(0.1, ge=0)
        """Weight of the cross-covariance penalty."""
        counterfactual: Literal["prior", "other"] = "prior"
        """What replaces z_c: the prior's mean, or z_c of a random unrelated pair."""
        temperature: float = searched(0.3, (0.05, 0.1, 0.3), gt=0)
        """Of the editing contrast."""
        locality: float = Field(1.0, ge=0)
        """Weight of the locality term."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "mvi")
