"""FedEraser: walk the recorded rounds again, in their step lengths and the retained clients' present directions.

Liu et al., IWQoS 2021. With U_t^k the recorded update of retained client k in round t and V the update it makes now, in a
calibration round from the model being rebuilt,

    theta <- theta + sum_k w_k ||U_t^k|| V_k / ||V_k||    per adapter tensor (their "layer"), w_k from numbers of pairs

The first step is the recorded one itself, from theta_0. With fewer exchanges than rounds every so-many-th round is walked
(their interval Delta t). The step length is the paper's ||U_t^k||; the released code takes the distance to the global model
*after* aggregation. Tensors that did not move keep their place (norm zero). Our re-implementation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from ease_flwr.strategies.base import Method, PhaseParams, Vector
from pydantic import Field

from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.federation import Request

if TYPE_CHECKING:
    from ease_flwr.store.history import History


class FedEraser(Method):
    """Rebuild the model from recorded step lengths and calibrated directions of the retained clients."""

    class Params(PhaseParams):
        rounds: int = Field(39, ge=1)
        """Exchanges of the forget phase, all of them; with one less than the learn phase had, every round is walked."""
        epochs: int = Field(1, ge=1)
        """Local epochs of a calibration round."""

    scenarios: ClassVar[tuple[str, ...]] = ("client",)
    history: ClassVar[Literal["", "updates", "rounds"]] = "rounds"

    def prepare(self, theta: Vector, history: History) -> Vector:
        names, blocks = self.context.clients, self.context.blocks
        self.lengths: list[dict[str, list[float]]] = []
        start = self.context.theta_0
        for i, columns in enumerate(history.rounds()):
            kept = self.context.weight(names, columns)
            if i == 0:
                start = start + np.sum([c for n, c in columns.items() if n in names], axis=0) / np.float32(kept)
            norms = {n: [float(np.linalg.norm(c[b.start : b.stop])) / kept for b in blocks] for n, c in columns.items()}
            self.lengths.append(norms)
        return start

    def recorded(self, now: int) -> dict[str, list[float]]:
        """Weighted step lengths of the round that is walked in round `now`."""
        last = len(self.lengths) - 1
        norms: dict[str, list[float]] = self.lengths[min(last, round(now * last / self.params.rounds))]
        return norms

    def requests(self, round: int) -> dict[str, Request]:
        train = self.plan(round).model_copy(update={"epochs": self.params.epochs})
        recorded = self.recorded(round)
        return {n: r for n, r in self.learners(round, train=train).items() if n in recorded}

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        lengths, rebuilt = self.recorded(round), theta.copy()
        for name, update in updates.items():
            for block, length in zip(self.context.blocks, lengths[name], strict=True):
                here = slice(block.start, block.stop)
                moved = update.adapters[here] - theta[here]
                if norm := float(np.linalg.norm(moved)):
                    rebuilt[here] += np.float32(length / norm) * moved
        return self.locked(round, rebuilt)
