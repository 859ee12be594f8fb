"""Cross-modal contrastive unlearning: the image tower alone moves away, see strategies/ccu.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from ease_flwr.clients.base import Batch
from ease_flwr.clients.forgetting import Forgetting
from torch.nn import functional as F

from ease_flwr.config import Section

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ease_flwr.exchange.messages import Training


RARE = 1e-3
"""What u leaves for a negative, relative to the others; with nothing the divergence would be infinite."""


def inverse_contrast(queries: Tensor, keys: Tensor, own: Tensor, temperature: float) -> Tensor:
    """KL(softmax || u) with u uniform over all keys but the own ones, the negatives: the rest share the positive mass.

    queries (b, d), keys (n, d), own (b, n) boolean; a scalar, 0 at best.
    """
    log_p = (queries @ keys.T / temperature).log_softmax(1)
    u = torch.where(own, RARE, 1.0).to(log_p)
    return (log_p.exp() * (log_p - (u / u.sum(1, keepdim=True)).log())).sum(1).mean()


def separation(others: Tensor, before: Tensor, forget: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrast of retained images (m, d) with themselves and their own class at the request (m, d), against the
    forgotten images (b, d): retained structure stays, forgotten images leave it. labels (m,), -1 where unknown; a scalar."""
    log_p = (torch.cat([before, forget]) @ others.T / temperature).T.log_softmax(1)[:, : len(before)]
    mates = same(labels, labels)
    return -((log_p * mates).sum(1) / mates.sum(1)).mean()


def same(a: Tensor, b: Tensor) -> Tensor:
    """Which of b (n,) are of the class of each of a (m,), the first m of them themselves: (m, n). -1 is of no class."""
    return (a[:, None] == b) & (a >= 0)[:, None] | torch.eye(len(a), len(b), dtype=torch.bool, device=a.device)


class Ccu(Forgetting):
    """Inverse contrast, cross-modal retention, dual-set separation; nothing in the text tower changes."""

    class Options(Section):
        temperature: float
        inverse: float
        retention: float
        separation: float

    def begin(self, instruction: Training, extras: dict[str, NDArray[Any]]) -> None:
        super().begin(instruction, extras)
        for block, parameter in zip(self.model.blocks, self.model.parameters, strict=True):
            parameter.requires_grad_(block.tower == "visual")
        gone, stays = self.masks
        kept = self.data.train.about[stays] if len(self.kept) else self.world.unseen().about
        both = [*self.data.train.about[gone].tolist(), *kept.tolist()]
        names = {name: k for k, name in enumerate(sorted({*both} - {""}))}
        numbers = torch.tensor([names.get(name, -1) for name in both])
        numbers = numbers.to(self.model.device)
        self.labels, self.others_labels = numbers[: len(self.train)], numbers[len(self.train) :]

    def loss(self, batch: Batch) -> Tensor:
        i, c, o = batch.index, batch.caption, self.options
        f = self.model.embed_images(self.train.images[i])
        j = self.draw(len(i), once=True)
        others = self.model.embed_images(self.others.images[j])
        others_f0, others_g0 = self.before["others_f0"][j], self.before["others_g0"][j, 0]
        loss = f.new_zeros(())
        if o.inverse:
            texts, images = torch.cat([self.before["g0"][i, c], others_g0]), torch.cat([self.before["f0"][i], others_f0])
            own = same(self.labels[i], torch.cat([self.labels[i], self.others_labels[j]]))
            loss = loss + o.inverse * sum(inverse_contrast(f, keys, own, o.temperature) for keys in (texts, images))
        if o.retention:
            after, then = (x @ others_g0.T / o.temperature for x in (others, others_f0))
            kl = F.kl_div(after.log_softmax(1), then.log_softmax(1), reduction="batchmean", log_target=True)
            loss = loss + o.retention * (kl + (1 - (others * others_f0).sum(1)).mean())
        if o.separation:
            loss = loss + o.separation * separation(others, others_f0, f, self.others_labels[j], o.temperature)
        return loss
