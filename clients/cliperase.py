"""CLIPErase's three modules (ACL 2025), see strategies/cliperase.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ease_flwr.clients.base import Batch
from ease_flwr.clients.contrastive import info_nce
from ease_flwr.clients.forgetting import Forgetting, apart

from ease_flwr.config import Section

if TYPE_CHECKING:
    from torch import Tensor


class ClipErase(Forgetting):
    """Forgetting, retention and consistency."""

    class Options(Section):
        forgetting: float
        retention: float
        consistency: float

    def loss(self, batch: Batch) -> Tensor:
        i, c, o = batch.index, batch.caption, self.options
        f, g = self.embed(batch)
        retention = info_nce(*self.embed_others(self.draw(len(i))), self.scale) if o.retention else 0.0
        consistency = apart(f, self.before["f0"][i]) + apart(g, self.before["g0"][i, c])
        return o.forgetting * (f * g).sum(1).mean() + o.retention * retention + o.consistency * consistency
