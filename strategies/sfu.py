"""SFU: the leaving client's ascent, cleared of every input direction that the others use.

Li et al., Subspace-based federated unlearning, arXiv 2302.12448 (TMLR 2026). Retained clients send a basis S of their layers'
input representations, the server projects the forget clients' gradient ascent step on its complement, once; then the others may
go on. Adapted to LoRA: the input side of a module is its factor A, so

    step_A <- step_A (I - S S^T)      step_B <- 0

and an image or caption whose representations lie in S is mapped as before. A client's basis comes from the row space of its
gradients of A, (B^T dL/dy) x^T (clients/representations.py), rank(A) directions with their strengths, which is as many numbers
as an adapter vector has; optional Gaussian noise before sending is the paper's. Our re-implementation.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from ease_flwr.strategies.assisted import AssistedParams, beside, forget_job, step
from ease_flwr.strategies.base import Method, Vector
from numpy.typing import NDArray
from pydantic import Field

from ease_flwr.config import searched
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.federation import Request

Matrix = NDArray[np.float64]


class Sfu(Method):
    """Project the forget clients' ascent off the retained clients' input subspaces, once, then fine-tune."""

    class Params(AssistedParams):
        energy: float = searched(0.7, (0.5, 0.7, 0.9, 0.99), gt=0, lt=1)
        """Share of the joint strength that S contains."""
        noise: float = Field(0.0, ge=0)
        """Standard deviation of a client's noise on its directions, relative to the strongest."""
        lr: float = searched(2e-2, (1e-3, 5e-3, 2e-2), gt=0)
        """AdamW learning rate of the forget clients."""
        epochs: int = Field(3, ge=1)
        """Local epochs of the forget clients."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "representations", "ascent")
    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "needed"

    def requests(self, round: int) -> dict[str, Request]:
        if round > 1:
            return self.learners(round)
        seen = self.learners(round, objective="representations", options={"noise": self.params.noise})
        return beside(self.context, seen, forget_job(self.context, round, "ascent", self.params.train, {"bound": 0.0}))

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        if round > 1:
            return self.averaged(round, updates)
        moved, after = step(self.context, theta, updates), theta.copy()
        kept = [u.adapters for n, u in updates.items() if n in self.context.clients]
        for block in self.context.blocks:
            if "lora_A" in block.name:
                here, shape = slice(block.start, block.stop), (block.shape[0], -1)
                rows = np.concatenate([v[here].reshape(shape) for v in kept]).astype(np.float64)
                basis = leading(rows, self.params.energy)
                part = moved[here].reshape(shape)
                after[here] += (part - part @ basis @ basis.T).reshape(-1)
        return self.locked(round, after)


def leading(rows: Matrix, energy: float) -> Matrix:
    """Orthonormal columns (d, q): the fewest right singular vectors of rows (n, d) that contain this share of the squared norm;
    none of zeros."""
    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    if not s.any():
        return np.zeros((rows.shape[1], 0))
    share = np.cumsum(s**2) / np.sum(s**2)
    basis: Matrix = vt[: 1 + int((share < energy).sum())].T
    return basis
