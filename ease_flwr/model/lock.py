"""The forget lock: directions of the adapter vector that may no longer move away from a reference point.

EASE, arXiv 2605.00733, component PFL (projection with forget lock). U is block-diagonal, one orthonormal basis per block
of the adapter vector; theta_ref enters only through U^T theta_ref.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ease_flwr.model import subspaces


@dataclass(frozen=True, eq=False)
class ForgetLock:
    """starts: first position of each block.  bases: (p_b, q_b) orthonormal each.  anchors: (q_b,) = U_b^T theta_ref.

    strength: lambda of the clients' proximal step, 1 / (learning rate x steps) is its natural unit.
    share: of the drift that the server takes back after a round, 0 to 1.
    halving: strength and share are halved every so many rounds; 0 never.  release: round from which on nothing is held; 0
    never.
    """

    starts: tuple[int, ...]
    bases: tuple[Tensor, ...]
    anchors: tuple[Tensor, ...]
    strength: float
    share: float = 1.0
    halving: int = 0
    release: int = 0

    @classmethod
    def around(cls, reference: Tensor, starts: Sequence[int], bases: Sequence[Tensor], *rules: float) -> ForgetLock:
        """Lock these directions at `reference` (p,), with strength, share, halving and release as they come. Blocks without
        directions are left out."""
        kept = [(s, b.to(reference.dtype)) for s, b in zip(starts, bases, strict=True) if b.shape[1]]
        anchors = tuple(b.T @ reference[s : s + len(b)] for s, b in kept)
        return cls(tuple(s for s, _ in kept), tuple(b for _, b in kept), anchors, *(rules or (0.0,)))  # type: ignore[arg-type]

    def aged(self, rounds: int) -> ForgetLock:
        """The same lock after so many rounds: weaker, or released, as its rules say."""
        if self.release and rounds >= self.release:
            return replace(self, strength=0.0, share=0.0)
        faded = 0.5 ** (rounds // self.halving) if self.halving else 1.0
        return replace(self, strength=self.strength * faded, share=self.share * faded)

    def on(self, device: torch.device) -> ForgetLock:
        """The same lock on a device."""
        moved = ([t.to(device) for t in tensors] for tensors in (self.bases, self.anchors))
        bases, anchors = (tuple(tensors) for tensors in moved)
        return replace(self, bases=bases, anchors=anchors)

    def and_also(self, older: ForgetLock, reference: Tensor) -> ForgetLock:
        """This lock with the directions of an older one added, all at `reference`, under the rules of this one.

        Bases of the same block are joined. Blocks of another cut of the vector are kept beside: they are held one after the
        other.
        """
        parts = {(s, len(b)): b for s, b in zip(self.starts, self.bases, strict=True)}
        for s, b in zip(older.starts, older.bases, strict=True):
            key = (s, len(b))
            parts[key] = subspaces.join([parts[key], b.to(parts[key].dtype)]) if key in parts else b
        rules = self.strength, self.share, self.halving, self.release
        return ForgetLock.around(reference, [s for s, _ in parts], list(parts.values()), *rules)

    @property
    def dimension(self) -> int:
        """Number of locked directions."""
        return sum(b.shape[1] for b in self.bases)

    @property
    def nbytes(self) -> int:
        """Bytes of its directions on the wire and on disk."""
        return sum(2 * b.numel() + 4 * b.shape[1] for b in self.bases)

    def along(self, moved: Tensor) -> Tensor:
        """U^T moved, (dimension,)."""
        parts = [b.T @ moved[s : s + len(b)] for s, b in zip(self.starts, self.bases, strict=True)]
        return torch.cat(parts) if parts else moved.new_zeros(0)

    def drift(self, theta: Tensor) -> Tensor:
        """z = U^T (theta - theta_ref), (dimension,)."""
        return self.along(theta) - torch.cat(self.anchors) if self.anchors else self.along(theta)

    @cached_property
    def separate(self) -> tuple[tuple[int, Tensor], ...]:
        """The same directions as orthonormal bases of blocks that do not overlap, with the first position of each."""
        found: list[tuple[int, Tensor]] = []
        for start, basis in sorted(zip(self.starts, self.bases, strict=True), key=lambda block: block[0]):
            here, both = start, basis
            if found and start < found[-1][0] + len(found[-1][1]):
                here, older = found.pop()
                length = max(len(older), start - here + len(basis))
                both = subspaces.join([padded(older, 0, length), padded(basis, start - here, length)])
            found.append((here, both))
        return tuple(found)

    @property
    def orthonormal(self) -> bool:
        """Whether no two blocks overlap: the bounds of the drift hold for one orthonormal U."""
        return len(self.separate) == len(self.bases)

    def energy(self, moved: Tensor) -> float:
        """Share of the squared length of a movement (p,) that lies along locked directions, 0 to 1; of no movement, 0."""
        parts = [(b.T @ moved[s : s + len(b)].to(b.dtype)).double().square().sum() for s, b in self.separate]
        whole = moved.double().square().sum()
        return min(1.0, float(sum(parts) / whole)) if whole else 0.0  # rounding may put it a little above all

    def shift(self, theta: Tensor, share: float) -> Tensor:
        """theta - share * U z: share 1 is the projection, which removes every trace along the locked directions."""
        moved = theta.clone()
        for s, b, a in zip(self.starts, self.bases, self.anchors, strict=True):
            part = moved[s : s + len(b)]
            part -= share * (b @ (b.T @ part - a))
        return moved

    def project(self, theta: Tensor) -> Tensor:
        """theta_ref + (I - U U^T)(theta - theta_ref): excision. Idempotent, affine."""
        return self.shift(theta, 1.0)

    def take_back(self, theta: Tensor) -> Tensor:
        """The server's half, after a round: its share of the drift is undone. With d the drift that a round adds and
        0 < share < 1, the drift stays below d (1 - share) / share for ever."""
        return self.shift(theta, self.share)

    def proximal_step(self, theta: Tensor, lr: float) -> Tensor:
        """The client's half: the exact minimiser of lambda/2 ||z||^2 + 1/(2 lr) ||. - theta||^2, after an optimiser step.

        Decoupled from the optimiser, so that Adam's preconditioner does not rescale it. With optimiser directions of norm
        <= G along U, the drift stays below max(||z_0||, G / lambda) for ever, whatever lr is.
        """
        return self.shift(theta, lr * self.strength / (1 + lr * self.strength))

    def tensors(self, half: bool = False) -> dict[str, Tensor]:
        """All of it as named tensors. half: bases in half precision, which is enough for the wire."""
        rules = torch.tensor([self.strength, self.share, self.halving, self.release], dtype=torch.float64)
        out = {"rules": rules, "starts": torch.tensor(self.starts)}
        for i, (b, a) in enumerate(zip(self.bases, self.anchors, strict=True)):
            out[f"basis.{i}"], out[f"anchor.{i}"] = (b.half() if half else b).contiguous(), a.float() if half else a
        return out

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> ForgetLock:
        """Inverse of `tensors`; what came in half precision is single afterwards."""

        def precise(t: Tensor) -> Tensor:
            return t.float() if t.dtype == torch.float16 else t

        n = len(tensors["starts"])
        strength, share, halving, release = tensors["rules"].tolist()
        return cls(
            tuple(tensors["starts"].tolist()),
            tuple(precise(tensors[f"basis.{i}"]) for i in range(n)),
            tuple(tensors[f"anchor.{i}"] for i in range(n)),
            strength,
            share,
            int(halving),
            int(release),
        )


def padded(basis: Tensor, before: int, length: int) -> Tensor:
    """A basis (n, q) as rows `before` and on of one of this length, zero elsewhere."""
    out = basis.new_zeros(length, basis.shape[1])
    out[before : before + len(basis)] = basis
    return out
