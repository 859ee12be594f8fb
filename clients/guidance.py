"""Memory guidance: the client half of MoDe (IEEE IoT Journal 2023), see strategies/mode.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ease_flwr.clients.base import Batch
from ease_flwr.clients.forgetting import Forgetting
from torch.nn import functional as F

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ease_flwr.exchange.messages import Training


def match(f: Tensor, g: Tensor, teacher_f: Tensor, teacher_g: Tensor, scale: Tensor) -> Tensor:
    """KL divergence of the batch's partner distributions from the teacher's, mean of both directions; embeddings (b, d)."""
    ours, theirs = scale * f @ g.T, scale * teacher_f @ teacher_g.T
    both = [(theirs, ours), (theirs.T, ours.T)]
    kls = [F.kl_div(b.log_softmax(1), a.log_softmax(1), reduction="batchmean", log_target=True) for a, b in both]
    return torch.stack(kls).mean()


class Guidance(Forgetting):
    """Match the forgotten pairs as the degraded model does. Array beside the adapters, each time: `teacher`."""

    remembers: ClassVar[tuple[str, ...]] = ()

    def begin(self, instruction: Training, extras: dict[str, NDArray[Any]]) -> None:
        super().begin(instruction, extras)
        current = self.model.get()
        self.teacher_f, self.teacher_g = self.embed_all(extras["teacher"], self.train)
        self.model.set(current)

    def loss(self, batch: Batch) -> Tensor:
        i, c = batch.index, batch.caption
        return match(*self.embed(batch), self.teacher_f[i], self.teacher_g[i, c], self.scale)
