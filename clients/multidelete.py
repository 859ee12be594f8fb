"""MultiDelete's three terms (Cheng and Amiri, ECCV 2024), see strategies/multidelete.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ease_flwr.clients.base import Batch
from ease_flwr.clients.forgetting import Forgetting, apart

from ease_flwr.config import Section

if TYPE_CHECKING:
    from torch import Tensor


def decoupling(f: Tensor, g: Tensor, f0: Tensor, g0: Tensor) -> Tensor:
    """Mean squared difference of the similarity of pairs, rows of (b, d), from that of the pairs with each other's partners at
    the request, picture to caption and caption to picture."""
    s, wrong_text, wrong_image = (f * g).sum(1), (f0 * g0.roll(1, 0)).sum(1), (f0.roll(1, 0) * g0).sum(1)
    return ((s - wrong_text).square() + (s - wrong_image).square()).mean()


class MultiDelete(Forgetting):
    """Decouple the modalities of forgotten pairs; keep the fused embeddings of others and every single modality."""

    class Options(Section):
        decouple: float
        fused: float
        single: float

    def loss(self, batch: Batch) -> Tensor:
        i, c, o = batch.index, batch.caption, self.options
        f, g = self.embed(batch)
        f0, g0 = self.before["f0"][i], self.before["g0"][i, c]
        j = self.draw(len(i))
        others_f, others_g = self.embed_others(j)
        fused = apart(others_f, self.before["others_f0"][j]) + apart(others_g, self.before["others_g0"][j, 0])
        return o.decouple * decoupling(f, g, f0, g0) + o.fused * fused + o.single * (apart(f, f0) + apart(g, g0))
