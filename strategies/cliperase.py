"""CLIPErase, federated: forgotten pairs are driven apart, others learnt on, each modality by itself kept.

Yang et al., ACL 2025 (arXiv 2410.23330). Three modules; the exact losses were not read, this is our re-implementation from the
published description:

    forgetting    mean <f, g> on forgotten pairs, minimised
    retention     CLIP's loss on other pairs
    consistency   || f - f° ||^2 + || g - g° ||^2 on forgotten pairs, ° at the request

The forget client has all three (others are what it keeps, or public pairs if it leaves), retained clients run InfoNCE. With
public pairs the retention module teaches people nobody was to know, so it is weak by default.
"""

from __future__ import annotations

from typing import ClassVar

from ease_flwr.strategies.assisted import Assisted, AssistedParams

from ease_flwr.config import searched


class ClipErase(Assisted):
    """Forgetting, retention and consistency modules."""

    class Params(AssistedParams):
        lr: float = searched(2e-4, (2e-4, 5e-4, 1e-3, 2e-3), gt=0)
        """AdamW learning rate of the forget clients."""
        forgetting: float = searched(0.3, (0.3, 1.0), ge=0)
        """Weight of the forgetting module."""
        retention: float = searched(0.0, (0.0, 0.1), ge=0)
        """Weight of the retention module."""
        consistency: float = searched(0.1, (0.1, 0.3, 1.0), ge=0)
        """Weight of the consistency module."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "cliperase")
