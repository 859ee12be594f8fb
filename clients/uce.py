"""Unlearning cross-entropy: the client half of FedOSD (Pan et al., AAAI 2025), see strategies/fedosd.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from ease_flwr.clients.base import Batch
from ease_flwr.clients.forgetting import Forgetting

from ease_flwr.model.retrieval import partner_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


def unlearning_cross_entropy(loss: Tensor) -> Tensor:
    """Mean of -log(1 - p/2) for p = exp(-loss), the probability of the partner; between 0 (p = 0) and log 2 (p = 1)."""
    return -torch.log1p(-torch.exp(-loss) / 2).mean()


class Uce(Forgetting):
    """Lower the probability of the partner in the batch, both directions."""

    remembers: ClassVar[tuple[str, ...]] = ()

    def loss(self, batch: Batch) -> Tensor:
        f, g = self.embed(batch)
        return unlearning_cross_entropy(partner_cross_entropy(f, g, f[:0], g[:0], self.scale))
