"""Bounded gradient ascent on InfoNCE: the forget clients' objective of strategies/ascent.py and strategies/sfu.py."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from ease_flwr.clients.base import Batch
from ease_flwr.clients.forgetting import Forgetting
from torch.nn import functional as F

from ease_flwr.config import Section
from ease_flwr.model.retrieval import partner_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


class Ascent(Forgetting):
    """Raise the cross-entropy of each partner up to a bound."""

    class Options(Section):
        bound: float
        """In nats; 0 is the logarithm of the number of candidates, a blind guess."""

    remembers: ClassVar[tuple[str, ...]] = ()

    def loss(self, batch: Batch) -> Tensor:
        f, g = self.embed(batch)
        bound = self.options.bound or math.log(len(f))
        return F.relu(bound - partner_cross_entropy(f, g, f[:0], g[:0], self.scale)).mean()
