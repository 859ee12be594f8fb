"""Negative preference optimisation with InfoNCE's probabilities, see strategies/npo.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ease_flwr.clients.base import Batch
from ease_flwr.clients.forgetting import Forgetting
from torch.nn import functional as F

from ease_flwr.config import Section
from ease_flwr.model.retrieval import partner_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


def negative_preference(loss: Tensor, before: Tensor, beta: float) -> Tensor:
    """Mean of (2 / beta) log(1 + (p / p_0)^beta), with partner losses -log p and -log p_0 of the same shape; a scalar."""
    return 2 / beta * F.softplus(beta * (before - loss)).mean()


class Npo(Forgetting):
    """Lower the partner's probability relative to what it was at the request."""

    class Options(Section):
        beta: float

    remembers: ClassVar[tuple[str, ...]] = ("f0", "g0")

    def loss(self, batch: Batch) -> Tensor:
        f, g = self.embed(batch)
        f0, g0 = self.before["f0"][batch.index], self.before["g0"][batch.index, batch.caption]
        loss, before = (partner_cross_entropy(a, b, a[:0], b[:0], self.scale) for a, b in ((f, g), (f0, g0)))
        return negative_preference(loss, before, self.options.beta)
