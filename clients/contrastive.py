"""Ordinary learning: symmetric InfoNCE, CLIP's own loss (Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ease_flwr.clients.base import Batch, LoraClient
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


def info_nce(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of (b, d) unit-length embeddings whose rows belong together; a scalar."""
    logits = scale * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Contrastive(LoraClient):
    """Every pair against the others of its batch."""

    def loss(self, batch: Batch) -> Tensor:
        return info_nce(*self.embed(batch), self.scale)
