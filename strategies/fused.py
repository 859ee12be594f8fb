"""FUSED: what changed most is learnt over by a sparse adapter that only the retained clients train.

Zhong et al., CVPR 2025: find the layers that changed most, freeze the model, attach a sparse adapter there and train it on
retained data. Adapted: the adapter is a change of the most changed adapter tensors themselves, so that the result is an
adapter vector like any other; all other tensors stay as they are. The method is reversible: whoever takes the sparse adapter
away has the original model again (its norm is in results.json). Our re-implementation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from ease_flwr.strategies.base import Method, PhaseParams, Vector

from ease_flwr.config import searched
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.federation import Request

if TYPE_CHECKING:
    from ease_flwr.store.history import History


class Fused(Method):
    """Train a sparse adapter on the tensors that changed most, on retained data only."""

    class Params(PhaseParams):
        share: float = searched(0.5, (0.1, 0.25, 0.5), gt=0, le=1)
        """Share of the adapter tensors that the sparse adapter covers."""

    def prepare(self, theta: Vector, history: History) -> Vector:
        moved, blocks = theta - self.context.theta_0, self.context.blocks
        change = [float(np.linalg.norm(moved[b.start : b.stop])) / math.sqrt(b.size) for b in blocks]
        count = math.ceil(self.params.share * len(blocks))
        self.tensors = tuple(sorted(sorted(range(len(blocks)), key=lambda i: -change[i])[:count]))
        self.facts["tensors"] = [blocks[i].name for i in self.tensors]
        self.original = theta
        return theta

    def requests(self, round: int) -> dict[str, Request]:
        return self.learners(round, tensors=self.tensors)

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        after = self.averaged(round, updates)
        self.facts["adapter_norm"] = float(np.linalg.norm(after - self.original))
        return after
