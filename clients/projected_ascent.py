"""Gradient ascent inside a ball: the client half of PGA (Halimi et al., arXiv 2207.05521), see strategies/pga.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ease_flwr.clients.base import Batch
from ease_flwr.clients.contrastive import info_nce
from ease_flwr.clients.forgetting import Forgetting

from ease_flwr.config import Section

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ease_flwr.exchange.messages import Training


class ProjectedAscent(Forgetting):
    """Arrays beside the adapters: `centre` of the ball and the client's `own` last model, adapter vectors."""

    class Options(Section):
        radius: float
        """Of the ball."""
        limit: float
        """Squared distance from `own` at which the ascent ends."""

    remembers: ClassVar[tuple[str, ...]] = ()

    def begin(self, instruction: Training, extras: dict[str, NDArray[Any]]) -> None:
        super().begin(instruction, extras)
        if not {"centre", "own"} <= extras.keys():
            raise ValueError("centre and own model are missing here: they must be sent again")
        self.centre, self.own = (torch.from_numpy(extras[name].copy()).to(self.model.device) for name in ("centre", "own"))

    def loss(self, batch: Batch) -> Tensor:
        return -info_nce(*self.embed(batch), self.scale)

    def stepped(self) -> bool:
        away = self.model.theta - self.centre
        self.model.theta.copy_(self.centre + away * (self.options.radius / away.norm()).clamp(max=1))
        return bool((self.model.theta - self.own).square().sum() <= self.options.limit)
