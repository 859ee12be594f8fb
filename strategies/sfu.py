"""SFU: the leaving client's ascent, cleared of every input direction that the others use.

Li et al., Subspace-based federated unlearning, arXiv 2302.12448 (TMLR 2026). Retained clients send a basis S of their layers'
input representations, the server projects the holders' gradient ascent step on its complement, once; then the others may go on.
Adapted to LoRA: the input side of a module is its factor A, so

    step_A <- step_A (I - S S^T)      step_B <- 0

and an image or caption whose representations lie in S is mapped as before. A client's basis comes from the row space of its
gradients of A, (B^T dL/dy) x^T (clients/representations.py), rank(A) directions with their strengths, which is as many numbers
as an adapter vector has; optional Gaussian noise before sending is the paper's. Our re-implementation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ease_flwr.core.config import searched
from ease_flwr.core.federation import Request
from ease_flwr.core.messages import Update
from strategies._assisted import Assisted
from strategies.base import Unlearning, Vector

if TYPE_CHECKING:
    from ease_flwr.core.history import History

Matrix = NDArray[np.float64]


class Sfu(Assisted):
    """Project the holders' ascent off the retained clients' input subspaces, once, then fine-tune."""

    class Params(Assisted.Params):
        energy: float = searched(0.7, (0.5, 0.7, 0.9, 0.99), gt=0, lt=1)
        """Share of the joint strength that S holds."""
        noise: float = Field(0.0, ge=0)
        """Standard deviation of a client's noise on its directions, relative to the strongest."""
        lr: float = searched(2e-2, (1e-3, 5e-3, 2e-2), gt=0)
        """AdamW learning rate of the holders."""
        epochs: int = Field(3, ge=1)
        """Local epochs of the holders."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "representations", "ascent")

    def prepare(self, theta: Vector, history: History) -> Vector:
        return theta

    def instruct(self, phase: str, round: int) -> dict[str, Request]:
        requests = Unlearning.instruct(self, phase, round)
        if round > 1:
            return requests
        asked = {"objective": "representations", "options": {"noise": self.params.noise}}
        requests = {n: Request(r.instruction.model_copy(update=asked)) for n, r in requests.items()}
        return self.beside(requests, self.job(phase, round))

    def options(self) -> dict[str, float | str]:
        return {"bound": 0.0}

    def combine(self, theta: Vector, updates: dict[str, Update]) -> Vector:
        if self.round > 1:
            return Unlearning.combine(self, theta, updates)
        step, after = self.step(theta, updates), theta.copy()
        kept = [u.adapters for n, u in updates.items() if n in self.setting.clients]
        for block in self.setting.blocks:
            if "lora_A" in block.name:
                here, shape = slice(block.start, block.stop), (block.shape[0], -1)
                rows = np.concatenate([v[here].reshape(shape) for v in kept]).astype(np.float64)
                basis = leading(rows, self.params.energy)
                part = step[here].reshape(shape)
                after[here] += (part - part @ basis @ basis.T).reshape(-1)
        return self.locked(after)


def leading(rows: Matrix, energy: float) -> Matrix:
    """Orthonormal columns (d, q): the fewest right singular vectors of rows (n, d) that hold this share of the squared norm;
    none of zeros."""
    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    if not s.any():
        return np.zeros((rows.shape[1], 0))
    held = np.cumsum(s**2) / np.sum(s**2)
    basis: Matrix = vt[: 1 + int((held < energy).sum())].T
    return basis
