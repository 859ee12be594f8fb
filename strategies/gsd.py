"""Gradient subspace decomposition (GSD) of EASE: which directions of the adapter vector only the forgotten brought.

arXiv 2605.00733. Per block of the adapter vector, with M_k the weighted updates of client k as columns (p, T):

    U_f = basis(M_f)      U_r = basis of all span(M_k), k retained
    principal directions P of U_f with cosines c to U_r; sine part Z = (I - U_r U_r^T) P
    U_u = orthonormal basis of Z[:, c <= tau]                       the unique subspace

By default tau is 1: everything outside of what the retained clients did is the forgotten client's alone. Nothing has to be
calibrated then. A threshold below 1 would measure the size of a block for a good part: a random direction of p dimensions has
cosine sqrt(q_r / p) to q_r others.

A block is one tensor, one LoRA factor, as long as all clients' updates fill no more than `fill` of its dimensions. Where they
would fill more, neighbouring tensors of a tower are taken together. So U_r always has every update of every retained client,
however many there are, and there is room outside of it.

Where a class or single pairs are withdrawn the history cannot tell: every retained client's updates contain what is to be
forgotten, U_r swallows U_f and nothing is unique.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from ease_flwr.strategies.base import MethodContext, Vector
from numpy.typing import NDArray
from pydantic import Field

from ease_flwr.config import ConfigError, Section

if TYPE_CHECKING:
    from torch import Tensor

    from ease_flwr.model.adapters import Block
    from ease_flwr.model.lock import ForgetLock
    from ease_flwr.model.subspaces import Angles
    from ease_flwr.store.history import History

Spans = Sequence[tuple[int, int]]
"""First position of each block, and the one after its last."""
Rows = Callable[[int, int], Vector]
"""Rows start to stop of somebody's updates, (stop - start, T): a block at a time is enough memory."""


class GsdParams(Section):
    source: Literal["auto", "history", "none"] = "auto"
    """Where the unique subspace comes from: the updates of the learn phase, or nowhere (no excision). auto: history where
    clients leave, none where a class or single pairs are withdrawn."""
    fill: float = Field(0.8, gt=0, le=1)
    """Neighbouring tensors of a tower are one block until all clients' updates fill at most this share of its dimensions."""
    tau: float = Field(1.0, ge=0, le=1)
    """Directions of the forget subspace whose cosine to the retained subspace is at most tau are excised."""
    energy: float = Field(0.99, gt=0, le=1)
    """Share of squared update norm that a client's basis contains."""
    reference: Literal["start", "request"] = "start"
    """What is taken back: everything since theta_0, or (a foil) since the request, which is nothing."""
    subspace: Literal["unique", "whole", "random"] = "unique"
    """What is excised. The others are foils: the whole forget subspace, or as many random directions."""


class Columns(NamedTuple):
    """Updates of the forget clients, and of the others, one `Rows` a client."""

    forget: Sequence[Rows]
    retain: Sequence[Rows]


class Measured(NamedTuple):
    """Of all blocks."""

    spans: Spans
    angles: list[Angles]
    """Principal angles of the forgotten updates to the retained ones."""
    shared: NDArray[np.float64]
    """Mean over the blocks of what every two clients' subspaces have in common; those who leave come first."""


def source(scenario: str, params: GsdParams) -> Literal["history", "none"]:
    """Where the updates for such a request come from. Raises ConfigError for a source that cannot tell."""
    if params.source == "auto":
        return "history" if scenario == "client" else "none"
    if params.source == "history" and scenario != "client":
        raise ConfigError(
            "strategy.gsd.source=history: the updates of clients that stay contain what is to be forgotten, so nothing would "
            "be unique: use none or auto"
        )
    return params.source


def recorded(context: MethodContext, history: History, leaving: Sequence[str]) -> Columns:
    """The learn phase's updates, of clients that leave, or are taken to, and of the others that took part in it."""
    others = [n for n in took_part(context, history) if n not in leaving]
    gone = [n for n in leaving if history.knows(n)]
    return Columns(*([partial(history.columns, n) for n in who] for who in (gone, others)))


def took_part(context: MethodContext, history: History) -> list[str]:
    """The clients that stay and have updates, away or not: with a share of the clients in a round some may never have been
    drawn."""
    return [n for n in (*context.clients, *context.away) if history.knows(n) and n not in context.leaving]


def blocks_of(blocks: Sequence[Block], updates: int, fill: float) -> Spans:
    """The blocks in which angles are measured: tensors of one tower, as few together as needed for so many updates to fill no
    more than `fill` of a block. A tower that is too small for that is one block."""
    spans: list[tuple[int, int]] = []
    for _, tower in groupby(blocks, lambda block: block.tower):
        found, start = list[tuple[int, int]](), None
        for block in tower:
            start = block.start if start is None else start
            if updates <= fill * (block.stop - start):
                found.append((start, block.stop))
                start = None
        if start is not None:
            first = found.pop()[0] if found else start
            found.append((first, block.stop))
        spans += found
    return spans


def at_once(spans: Spans, columns: Columns, most: int = 2**27) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Updates of the first and of the others block by block, float64 (stop - start, T) each.

    Several blocks are read at once, up to `most` numbers of all clients, as every read opens each round's file.
    """
    import torch

    rows = most // (columns.forget[0](*spans[0]).shape[1] * (len(columns.forget) + len(columns.retain)))
    i = 0
    while i < len(spans):
        j = i + 1
        while j < len(spans) and spans[j][1] - spans[i][0] <= rows:
            j += 1
        begin, end = spans[i][0], spans[j - 1][1]
        theirs, others = ([rows_of(begin, end) for rows_of in who] for who in columns)
        for start, stop in spans[i:j]:
            part = slice(start - begin, stop - begin)
            now = [[torch.from_numpy(c.T[:, part]).double().T for c in who] for who in (theirs, others)]
            yield now[0], now[1]
        i = j


def measure(params: GsdParams, columns: Columns, blocks: Sequence[Block]) -> Measured:
    """Principal angles block by block, and what any two clients share."""
    import torch

    from ease_flwr.model import subspaces

    spans = blocks_of(blocks, sum(rows(0, 1).shape[1] for who in columns for rows in who), params.fill)
    angles, shared = [], []
    for theirs, others in at_once(spans, columns):
        support = subspaces.Support([subspaces.basis(m, params.energy) for m in others])
        angles.append(subspaces.principal_angles(subspaces.basis(torch.cat(theirs, dim=1), params.energy), support))
        shared.append(support.shared_with([subspaces.basis(m, params.energy) for m in theirs]).numpy())
    return Measured(spans, angles, np.mean(shared, axis=0))


def bases(params: GsdParams, angles: Sequence[Angles], seed: int) -> list[Tensor]:
    """What is excised, an orthonormal basis (p_b, q_b) for each block."""
    import torch

    from ease_flwr.model import subspaces

    unique = [subspaces.exclusive(a, params.tau) for a in angles]
    if params.subspace == "whole":
        return [a.principal for a in angles]
    if params.subspace == "random":
        draw = torch.Generator().manual_seed(seed)
        return [torch.linalg.qr(torch.randn(u.shape, generator=draw, dtype=u.dtype))[0] for u in unique]
    return unique


def around(reference: Vector, spans: Spans, directions: Sequence[Tensor], *rules: float) -> ForgetLock:
    """These directions, locked at `reference` (p,); rules as in ForgetLock.around."""
    import torch

    from ease_flwr.model.lock import ForgetLock

    return ForgetLock.around(torch.from_numpy(reference), [start for start, _ in spans], directions, *rules)


def facts(
    context: MethodContext,
    names: Sequence[str],
    measured: Measured,
    unique: Sequence[Tensor],
    theta: Vector,
    start: Vector,
) -> dict[str, Any]:
    """What was found and cut, in all and block by block. names: clients in the order of what any two share.  start: theta after
    the excision."""
    towers = [next(b.tower for b in context.blocks if b.start == i) for i, _ in measured.spans]
    count = {t: sum(u.shape[1] for u, w in zip(unique, towers, strict=True) if t == w) for t in ("visual", "text")}
    blocks = [
        {
            "tower": tower,
            "cosines": [round(c, 3) for c in a.cosines.tolist()],
            "moved": round(float(np.linalg.norm((theta - context.theta_0)[i:j])), 4),
            "excised": round(float(np.linalg.norm((theta - start)[i:j])), 4),
        }
        for a, tower, (i, j) in zip(measured.angles, towers, measured.spans, strict=True)
    ]
    order = np.argsort(names)
    overlap = {"clients": sorted(names), "matrix": measured.shared[np.ix_(order, order)].round(3).tolist()}
    return {"unique": count, "blocks": blocks, "overlap": overlap}
