"""EASE: cut out of the adapters what only the forgotten clients brought, repair the rest, and lock the gap.

arXiv 2605.00733, from its published description; where that is silent the choice is ours.
Per block of the adapter vector, with M_k the weighted updates of client k as columns (p, T):

    U_f = basis(M_f)      U_r = basis of all span(M_k), k retained
    principal directions P of U_f with cosines c to U_r; sine part Z = (I - U_r U_r^T) P
    U_u = orthonormal basis of Z[:, c <= tau]                       the unique subspace (GSD)
    theta_E = theta_T - U_u U_u^T (theta_T - theta_0)               excision
    rounds: retained clients InfoNCE, forgotten clients BKE (clients/bilateral.py), then
    theta <- theta_0 + (I - U_u U_u^T)(theta + sum_r a_r D_r + sum_f D_f - theta_0)      projection (PFL)

    afterwards U_u and the span of all D_f are locked where they are (forget lock)

The reference of the excision is theta_0: with the adapters at the request as reference the projection would remove nothing
that was learnt, and would forbid BKE to move in just the directions that matter. The lock also holds the directions in
which BKE has moved: what it displaced lies outside U_u for a good part, and comes back along the way it went.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from ease_flwr.core.config import Section, TrainConfig
from ease_flwr.core.federation import Request
from ease_flwr.core.messages import Instruction, Update
from strategies.base import Setting, Unlearning, Vector, on_numpy

if TYPE_CHECKING:
    from torch import Tensor

    from ease_flwr.core.adapters import Block
    from ease_flwr.core.history import History
    from ease_flwr.core.lock import ForgetLock
    from ease_flwr.core.subspaces import Angles


class Ease(Unlearning):
    """Subspace excision with bilateral knowledge excision, projection and forget lock."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "bilateral")

    class Params(Section):
        rounds: int = Field(8, ge=1)
        """Rounds of the forget phase."""
        scope: Literal["tensor", "tower", "vector"] = "tensor"
        """Block of the adapter vector in which angles are measured: each LoRA factor, each tower, or all at once."""
        tau: float = Field(0.6, ge=0, le=1)
        """Directions of the forget subspace whose cosine to the retained subspace is at most tau are excised."""
        teacher_tau: float = Field(0.85, ge=0, le=1)
        """The same for the teacher of BKE, a deeper excision that is never used itself: it only shows which pairs depend on
        exclusive directions."""
        energy: float = Field(0.99, gt=0, le=1)
        """Share of squared update norm that a client's basis holds."""
        bke: bool = True
        """Whether the forgotten clients help by bilateral excision; without, excision and projection work alone."""
        bke_train: TrainConfig = TrainConfig(rounds=1, epochs=1, lr=5e-4)
        """Local training of a forgotten client in each round (its `rounds` is not used)."""
        bke_weight: float = Field(30.0, gt=0)
        """w of the BKE loss."""
        bke_margin: float = Field(1.0, ge=0)
        """w_l, weight of the margin term of BKE."""
        bke_evidence: float = Field(0.375, ge=0, le=1)
        """How far excision must take a pair towards the level of unseen pairs for it to count as exclusive (0 to 1)."""
        lock: float = Field(20.0, ge=0)
        """lambda of the clients' half of the forget lock in the hold phase; 0 leaves it to the server's alone."""
        lock_share: float = Field(0.5, ge=0, le=1)
        """Server's half: the share of the drift along locked directions that is taken back after each round."""

    params: Ease.Params

    def __init__(self, setting: Setting, params: Section, lock: ForgetLock | None = None) -> None:
        super().__init__(setting, params, lock)
        self.teacher: dict[str, Vector] = {}
        self.steps: list[Vector] = []
        self.spans = blocks_of(setting.blocks, self.params.scope)

    def prepare(self, theta: Vector, history: History) -> Vector:
        angles = self.angles(history)
        self.unique = self.bases(self.params.tau, angles)
        self.gap = self.around(self.setting.theta_0, self.unique)
        excised = on_numpy(self.gap.project, theta)
        if self.params.bke:
            deep = self.around(self.setting.theta_0, self.bases(self.params.teacher_tau, angles))
            self.teacher = {"request": theta, "teacher": on_numpy(deep.project, theta)}
        return excised

    def instruct(self, phase: str, round: int) -> dict[str, Request]:
        requests = super().instruct(phase, round)
        if self.params.bke:
            instruction = Instruction(
                phase=phase,
                round=round,
                objective="bilateral",
                train=self.params.bke_train,
                options={
                    "weight": self.params.bke_weight,
                    "margin": self.params.bke_margin,
                    "evidence": self.params.bke_evidence,
                },
            )
            requests |= {name: Request(instruction, once=self.teacher) for name in self.setting.forgotten}
        return requests

    def combine(self, theta: Vector, updates: dict[str, Update]) -> Vector:
        moved = self.mean({n: u for n, u in updates.items() if n in self.setting.clients})
        steps = [updates[n].adapters - theta for n in self.setting.forgotten if n in updates]
        after = on_numpy(self.gap.project, sum(steps, moved))
        self.steps += steps
        return after

    def lock_after(self, theta: Vector) -> ForgetLock:
        """What later rounds may not move back: the unique subspace and the forgotten clients' own steps, from here."""
        import torch

        from ease_flwr.core import subspaces

        if not self.steps:
            return self.around(theta, self.unique)
        steps = torch.from_numpy(np.stack(self.steps, axis=1)).double()
        taken = [subspaces.basis(steps[start:stop], energy=1.0) for start, stop in self.spans]
        return self.around(theta, [subspaces.join(pair) for pair in zip(self.unique, taken, strict=True)])

    def angles(self, history: History) -> list[Angles]:
        """Principal angles of the forgotten clients' updates to the retained ones', block by block."""
        import torch

        from ease_flwr.core import subspaces

        forget = torch.cat([torch.from_numpy(history.columns(n)).double() for n in self.setting.forgotten], dim=1)
        retain = [torch.from_numpy(history.columns(n)).double() for n in self.setting.clients]
        found = []
        for start, stop in self.spans:
            u_f = subspaces.basis(forget[start:stop], self.params.energy)
            u_r = subspaces.join([subspaces.basis(m[start:stop], self.params.energy) for m in retain])
            found.append(subspaces.principal_angles(u_f, u_r))
        return found

    def bases(self, tau: float, angles: list[Angles]) -> list[Tensor]:
        """The unique subspace at a threshold, an orthonormal basis (p_b, q_b) for each block."""
        from ease_flwr.core import subspaces

        return [subspaces.exclusive(a, tau) for a in angles]

    def around(self, reference: Vector, bases: list[Tensor]) -> ForgetLock:
        """These directions, locked at `reference`."""
        import torch

        from ease_flwr.core.lock import ForgetLock

        starts = [start for start, _ in self.spans]
        return ForgetLock.around(torch.from_numpy(reference), starts, bases, self.params.lock, self.params.lock_share)


def blocks_of(blocks: tuple[Block, ...], scope: str) -> list[tuple[int, int]]:
    """(start, stop) of the blocks in which angles are measured. The image tower comes first in the vector."""
    if scope == "tensor":
        return [(b.start, b.stop) for b in blocks]
    edge = next(b.start for b in blocks if b.tower == "text")
    end = blocks[-1].stop
    return [(0, end)] if scope == "vector" else [(0, edge), (edge, end)]
