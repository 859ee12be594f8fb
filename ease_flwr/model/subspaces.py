"""Subspaces of client updates: bases, principal angles, and the part of one subspace that no other one supports.

Tensors in, tensors out. This is the linear algebra of gradient subspace decomposition (GSD) of EASE, arXiv 2605.00733:
cosine components of the forget subspace are shared with retained clients, sine components are exclusive to it.

Matrices of columns (p, n) are transposes of rows: each column lies in one piece in memory. p is long and n short, so every
product is several times faster than the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def basis(columns: Tensor, energy: float = 0.99) -> Tensor:
    """Orthonormal basis (p, q) of the leading directions of `columns` (p, T): the smallest q that holds `energy`.

    energy: share of the squared singular values, 0 < energy <= 1. Columns of zeros give q = 0. Where the directions are of
    similar strength the eigenvectors of the Gram matrix tell them to 12 digits, at a fifth of the work. They lose as many
    digits as the squares of the strengths differ by, so otherwise it is QR and the SVD of R.
    """
    gram = columns.T @ columns
    if not bool(gram.any()):
        return columns.new_zeros(len(columns), 0)

    def needed(s: Tensor) -> int:
        held = torch.cumsum(s**2, 0) / (s**2).sum()
        significant = int((s > torch.finfo(s.dtype).eps * max(columns.shape) * s[0]).sum())
        return min(1 + int((held < energy).sum()), significant)

    values, vectors = torch.linalg.eigh(gram)
    s, v = values.clamp_min(0).sqrt().flip(0), vectors.flip(1)
    if s[(q := needed(s)) - 1] > 1e-2 * s[0]:
        return ((v[:, :q] / s[:q]).T @ columns.T).T
    q_factor, r = torch.linalg.qr(columns)
    u, s, _ = torch.linalg.svd(r, full_matrices=False)
    return q_factor @ u[:, : needed(s)]


def join(bases: Sequence[Tensor], tolerance: float = 1e-6) -> Tensor:
    """Orthonormal basis of the sum of subspaces. tolerance: singular values below it, relative to the first, are dropped."""
    stacked = _beside(bases)
    if stacked.shape[1] == 0:
        return stacked
    q, r = torch.linalg.qr(stacked)
    u, s, _ = torch.linalg.svd(r, full_matrices=False)
    return q @ u[:, s > tolerance * s[0]]


class Support:
    """The sum R of several subspaces, as far as it takes to say what lies outside of it.

    Their bases stay as they are: an orthonormal basis of R would cost several times the product S^T S of all columns S (p, N),
    which is all that is computed here, p N^2 multiplications. Where S^T S has no safe Cholesky factor, because some of the
    columns hardly differ in direction, there is a basis after all.
    """

    def __init__(self, bases: Sequence[Tensor]) -> None:
        """bases: orthonormal, (p, q_k) each, one at least."""
        self.stacked = self.columns = _beside(bases)
        self.sizes = [b.shape[1] for b in bases]
        self.gram = _gram(self.stacked)
        factor, failed = torch.linalg.cholesky_ex(self.gram)
        self.factor: Tensor | None = factor
        if int(failed) or (len(factor) and float(factor.diagonal().min()) < 1e-4):
            self.columns, self.factor = join(bases), None

    def outside(self, vectors: Tensor) -> Tensor:
        """(I - P_R) of vectors (p, n)."""
        for _ in range(2):  # once more: what is left of R after rounding, which grows with the condition of S^T S
            inside = self.columns.T @ vectors
            if self.factor is not None:
                inside = torch.cholesky_solve(inside, self.factor)
            vectors = vectors - (inside.T @ self.columns.T).T
        return vectors

    def shared_with(self, others: Sequence[Tensor] = ()) -> Tensor:
        """How much every two of `others` and the subspaces of R have in common: ||U_i^T U_j||_F^2 / min(q_i, q_j), 0 to 1."""
        theirs = _beside([*others, self.columns[:, :0]])
        cross = theirs.T @ self.stacked
        products = torch.cat([torch.cat([theirs.T @ theirs, cross], 1), torch.cat([cross.T, self.gram], 1)])
        sizes = torch.tensor([b.shape[1] for b in others] + self.sizes)
        of = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        indicator = torch.nn.functional.one_hot(of, len(sizes)).to(products.dtype)
        smaller = torch.minimum(sizes[:, None], sizes).clamp_min(1)
        return indicator.T @ products.square() @ indicator / smaller


def _beside(columns: Sequence[Tensor]) -> Tensor:
    """All columns, (p, N)."""
    return torch.cat([c.T for c in columns]).T


def _gram(columns: Tensor, width: int = 512) -> Tensor:
    """columns^T columns, its upper half computed."""
    n = columns.shape[1]
    gram = columns.new_zeros(n, n)
    for i in range(0, n, width):
        gram[i : i + width, i:] = columns[:, i : i + width].T @ columns[:, i:]
    return gram.triu() + gram.triu(1).T


@dataclass(frozen=True)
class Angles:
    """Thin CS decomposition of a subspace F against a subspace R, principal directions in order of decreasing cosine.

    principal: (p, q) orthonormal, in F.  sine: (p, q), the part of each that is orthogonal to R; its norms are the sines.
    cosines, sines: (q,), with cosines**2 + sines**2 = 1.
    """

    principal: Tensor
    sine: Tensor
    cosines: Tensor
    sines: Tensor


def principal_angles(forget: Tensor, retain: Support) -> Angles:
    """Angles between the span of an orthonormal basis (p, q_f) and R, each to its digits, the tiny and the nearly right ones.

    The right singular vectors of (I - P_R) U_f are the principal directions.
    """
    outside = retain.outside(forget)
    _, _, vt = torch.linalg.svd(torch.linalg.qr(outside)[1])
    principal, sine = (x @ vt.flip(0).T for x in (forget, outside))
    cosines = torch.linalg.vector_norm(principal - sine, dim=0).clamp(0, 1)
    return Angles(principal, sine, cosines, torch.linalg.vector_norm(sine, dim=0))


def exclusive(angles: Angles, tau: float) -> Tensor:
    """Orthonormal basis (p, q_u) of the sine parts of the directions with cosine <= tau."""
    chosen = (angles.cosines <= tau) & (angles.sines > 1e-6)
    return torch.linalg.qr(angles.sine[:, chosen])[0]
