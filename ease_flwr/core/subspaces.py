"""Subspaces of client updates: bases, principal angles, and the part of one subspace that no other one supports.

Tensors in, tensors out. This is the linear algebra of gradient subspace decomposition (GSD) of EASE, arXiv 2605.00733:
cosine components of the forget subspace are shared with retained clients, sine components are exclusive to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def basis(columns: Tensor, energy: float = 0.99, most: int = 64) -> Tensor:
    """Orthonormal basis (p, q) of the leading directions of `columns` (p, T): the smallest q <= most that holds `energy`.

    energy: share of the squared singular values, 0 < energy <= 1. Columns of zeros give q = 0. By QR and the SVD of R,
    never by the eigenvectors of a Gram matrix, which lose half the digits.
    """
    if columns.numel() == 0 or not bool(columns.any()):
        return columns.new_zeros(len(columns), 0)
    q, r = torch.linalg.qr(columns)
    u, s, _ = torch.linalg.svd(r, full_matrices=False)
    held = torch.cumsum(s**2, 0) / (s**2).sum()
    significant = int((s > torch.finfo(s.dtype).eps * max(columns.shape) * s[0]).sum())
    count = min(most, 1 + int((held < energy).sum()), significant)
    return q @ u[:, :count]


def join(bases: Sequence[Tensor], tolerance: float = 1e-6) -> Tensor:
    """Orthonormal basis of the sum of subspaces. tolerance: singular values below it, relative to the first, are dropped."""
    stacked = torch.cat(list(bases), dim=1)
    if stacked.shape[1] == 0:
        return stacked
    q, r = torch.linalg.qr(stacked)
    u, s, _ = torch.linalg.svd(r, full_matrices=False)
    return q @ u[:, s > tolerance * s[0]]


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


def principal_angles(forget: Tensor, retain: Tensor) -> Angles:
    """Angles between the spans of two orthonormal bases, (p, q_f) and (p, q_r). Sines are accurate for tiny angles too."""
    q_f = forget.shape[1]
    cross = retain.T @ forget
    _, c, vt = torch.linalg.svd(cross, full_matrices=True)
    cosines = torch.cat([c, c.new_zeros(max(0, q_f - len(c)))])[:q_f].clamp(0, 1)
    principal = forget @ vt.T
    sine = principal - retain @ (retain.T @ principal)
    sine = sine - retain @ (retain.T @ sine)  # once more: what is left of R after rounding
    return Angles(principal, sine, cosines, torch.linalg.vector_norm(sine, dim=0))


def exclusive(angles: Angles, tau: float) -> Tensor:
    """Orthonormal basis (p, q_u) of the sine parts of the directions with cosine <= tau."""
    chosen = (angles.cosines <= tau) & (angles.sines > 1e-6)
    return torch.linalg.qr(angles.sine[:, chosen])[0]
