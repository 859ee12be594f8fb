"""EASE: cut out of the adapters what only the forgotten clients brought, repair the rest, and lock the gap.

arXiv 2605.00733, from its published description; where that is silent the choice is ours.
Per block of the adapter vector, with M_k the weighted updates of client k as columns (p, T):

    U_f = basis(M_f)      U_r = basis of all span(M_k), k retained
    principal directions P of U_f with cosines c to U_r; sine part Z = (I - U_r U_r^T) P
    U_u = orthonormal basis of Z[:, c <= tau]                       the unique subspace (GSD)
    theta_E = theta_T - U_u U_u^T (theta_T - theta_0)               excision
    rounds: retained clients InfoNCE, forgotten clients BKE (clients/bilateral.py), then
    theta <- theta_0 + (I - U_u U_u^T)(theta + sum_r a_r D_r + sum_f D_f - theta_0)      projection (PFL)

The reference is theta_0: with the adapters at the request as reference the projection would remove nothing that was
learnt, and would forbid BKE to move in just the directions that matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from ease_flwr.core.config import Section, TrainConfig
from ease_flwr.core.federation import Request
from ease_flwr.core.messages import Instruction, Update
from strategies.base import Setting, Unlearning, Vector

if TYPE_CHECKING:
    from torch import Tensor

    from ease_flwr.core.adapters import Block
    from ease_flwr.core.history import History
    from ease_flwr.core.lock import ForgetLock


class Ease(Unlearning):
    """Subspace excision with bilateral knowledge excision, projection and forget lock."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "bilateral")

    class Params(Section):
        rounds: int = Field(5, ge=1)
        """Rounds of the forget phase."""
        scope: Literal["tensor", "tower", "vector"] = "tensor"
        """Block of the adapter vector in which angles are measured: each LoRA factor, each tower, or all at once."""
        tau: float = Field(0.6, ge=0, le=1)
        """Directions of the forget subspace whose cosine to the retained subspace is at most tau are excised."""
        energy: float = Field(0.99, gt=0, le=1)
        """Share of squared update norm that a client's basis holds."""
        bke: bool = True
        """Whether the forgotten clients help by bilateral excision; without, excision and projection work alone."""
        bke_train: TrainConfig = TrainConfig(rounds=1, epochs=1, lr=2e-4)
        """Local training of a forgotten client in each round (its `rounds` is not used)."""
        bke_weight: float = Field(30.0, gt=0)
        """w of the BKE loss."""
        lock: float = Field(1.0, ge=0)
        """lambda of the clients' forget lock; 0 leaves the lock to the server's projection alone."""

    params: Ease.Params

    def __init__(self, setting: Setting, params: Section, lock: ForgetLock | None = None) -> None:
        super().__init__(setting, params, lock)
        self.teacher: dict[str, Vector] = {}
        self.angles: list[dict[str, object]] = []

    def prepare(self, theta: Vector, history: History) -> Vector:
        import torch

        from ease_flwr.core.lock import ForgetLock

        spans = blocks_of(self.setting.blocks, self.params.scope)
        bases = self.unique_subspaces(spans, history)
        reference = torch.from_numpy(self.setting.theta_0)
        self.lock = ForgetLock.around(reference, [s for s, _ in spans], bases, self.params.lock)
        excised = self.locked(theta)
        self.teacher = {"request": theta, "teacher": excised}
        return excised

    def instruct(self, phase: str, round: int) -> dict[str, Request]:
        requests = super().instruct(phase, round)
        if self.params.bke:
            instruction = Instruction(
                phase=phase,
                round=round,
                objective="bilateral",
                train=self.params.bke_train,
                options={"weight": self.params.bke_weight},
            )
            requests |= {name: Request(instruction, once=self.teacher) for name in self.setting.forgotten}
        return requests

    def combine(self, theta: Vector, updates: dict[str, Update]) -> Vector:
        moved = self.mean({n: u for n, u in updates.items() if n in self.setting.clients})
        for name in self.setting.forgotten:
            if name in updates:
                moved = moved + (updates[name].adapters - theta)
        return self.locked(moved)

    def unique_subspaces(self, spans: list[tuple[int, int]], history: History) -> list[Tensor]:
        """U_u of every block, float64 orthonormal (p_b, q_b)."""
        import torch

        from ease_flwr.core import subspaces

        forget = [torch.from_numpy(history.columns(n)).double() for n in self.setting.forgotten]
        retain = [torch.from_numpy(history.columns(n)).double() for n in self.setting.clients]
        bases = []
        for start, stop in spans:
            columns = torch.cat([m[start:stop] for m in forget], dim=1)
            u_f = subspaces.basis(columns, self.params.energy)
            u_r = subspaces.join([subspaces.basis(m[start:stop], self.params.energy) for m in retain])
            angles = subspaces.principal_angles(u_f, u_r)
            bases.append(subspaces.exclusive(angles, self.params.tau))
            self.angles.append(
                {
                    "start": start,
                    "cosines": angles.cosines.tolist(),
                    "energy": subspaces.energy_share(angles.principal, columns).tolist(),
                    "excised": int(bases[-1].shape[1]),
                    "retained_dimension": int(u_r.shape[1]),
                }
            )
        return bases


def blocks_of(blocks: tuple[Block, ...], scope: str) -> list[tuple[int, int]]:
    """(start, stop) of the blocks in which angles are measured. The image tower comes first in the vector."""
    if scope == "tensor":
        return [(b.start, b.stop) for b in blocks]
    edge = next(b.start for b in blocks if b.tower == "text")
    end = blocks[-1].stop
    return [(0, end)] if scope == "vector" else [(0, edge), (edge, end)]
