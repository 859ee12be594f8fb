"""Gradient subspace decomposition (GSD) of EASE: which directions of the adapter vector only the forgotten brought.

arXiv 2605.00733. Per block of the adapter vector, with M_k the weighted updates of client k as columns (p, T):

    U_f = basis(M_f)      U_r = basis of all span(M_k), k retained
    principal directions P of U_f with cosines c to U_r; sine part Z = (I - U_r U_r^T) P
    U_u = orthonormal basis of Z[:, c <= tau]                       the unique subspace

Where a class or single pairs are withdrawn, the ordinary history cannot tell: every retained client's updates contain what is
to be forgotten, U_r swallows U_f and nothing is unique. There M_f and M_k come from probe rounds on the two parts of the
data, from theta_0. The block and tau are as set, or as calibration finds (strategies/calibration.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ease_flwr.config import ConfigError, Section
from ease_flwr.exchange.federation import Request
from strategies.assisted import learn_forgotten
from strategies.base import Method, MethodContext, Vector, on_numpy

if TYPE_CHECKING:
    from torch import Tensor

    from ease_flwr.exchange.rounds import Outcome
    from ease_flwr.model.adapters import Block
    from ease_flwr.model.lock import ForgetLock
    from ease_flwr.model.subspaces import Angles
    from ease_flwr.store.history import History

Scope = Literal["tensor", "tower", "vector"]
Spans = Sequence[tuple[int, int]]
"""First position of each block, and the one after its last."""
Rows = Callable[[int, int], Vector]
"""Rows start to stop of somebody's updates, (stop - start, T): a block at a time is enough memory."""


class GsdParams(Section):
    source: Literal["auto", "history", "probe", "none"] = "auto"
    """Where the unique subspace comes from: the updates of the learn phase, probe rounds, or nowhere (no excision). auto:
    history where clients leave, none where a class or single pairs are withdrawn."""
    probe_rounds: int = Field(6, ge=1)
    """Probe rounds on each part of the data."""
    scope: Scope | None = "tensor"
    """Block of the adapter vector in which angles are measured: each LoRA factor, each tower, or all at once; None: as
    calibration finds."""
    reference: Literal["start", "request"] = "start"
    """What is taken back: everything since theta_0, or (a foil) since the request, which is nothing."""
    tau: float | None = Field(None, ge=0, le=1)
    """Directions of the forget subspace whose cosine to the retained subspace is at most tau are excised; None: as
    calibration finds."""
    taus: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8)
    """Thresholds that calibration tries. Deeper ones need BKE less, and hurt what is kept more."""
    drop: float = Field(0.25, ge=0, le=1)
    """How much of the retained clients' validation recall an excision may cost, as a share of what it was; the rounds after
    it bring most of it back."""
    teacher_tau: float = Field(0.85, ge=0, le=1)
    """The same as tau for the teacher of BKE, a deeper excision that is never used itself: it only shows which pairs
    depend on exclusive directions, and what is left of them without."""
    energy: float = Field(0.99, gt=0, le=1)
    """Share of squared update norm that a client's basis contains."""
    crowd: float = Field(0.5, gt=0, le=1)
    """Share of a block's dimensions that the retained clients' bases may have in all, each an equal part. A crowded block
    has hardly anything left outside."""
    directions: int = Field(640, ge=1)
    """Directions that these bases may have in all, whatever the share allows: work grows with the square of it."""
    subspace: Literal["unique", "whole", "random"] = "unique"
    """What is excised. The others are foils: the whole forget subspace, or as many random directions."""


class Columns(NamedTuple):
    """Updates of the forget clients, and of the others, one `Rows` a client."""

    forget: Sequence[Rows]
    retain: Sequence[Rows]


class Measured(NamedTuple):
    """Of all blocks of a scope."""

    spans: Spans
    angles: list[Angles]
    """Principal angles of the forgotten updates to the retained ones."""
    shared: NDArray[np.float64]
    """Mean over the blocks of what every two clients' subspaces have in common; those who leave come first."""


def source(context: MethodContext, params: GsdParams) -> Literal["history", "probe", "none"]:
    """Where this request's updates come from. Raises ConfigError for a source that cannot tell."""
    staying = context.forget is not None and context.forget.scenario != "client"
    if params.source == "auto":
        return "none" if staying else "history"
    if params.source == "probe" and not context.forget_clients:
        raise ConfigError("strategy.gsd.source=probe: no forget client is there to train on what is to be forgotten")
    if params.source == "history" and staying:
        raise ConfigError(
            "strategy.gsd.source=history: the updates of clients that stay contain what is to be forgotten, so nothing would "
            "be unique: use probe, none or auto"
        )
    return params.source


def recorded(context: MethodContext, history: History) -> Columns:
    """Updates of the learn phase, of those who leave and of the others."""
    return Columns(*([partial(history.columns, n) for n in who] for who in (context.leaving, context.clients)))


class Probe(Method):
    """Rounds in which everybody trains on one part of the data alone; the phase is named after the part."""

    def requests(self, round: int) -> dict[str, Request]:
        if self.context.phase == "probe-forget":
            return learn_forgotten(self.context, round, self.context.experiment.learn)
        return self.learners(round)


def probe(context: MethodContext, part: Literal["forget", "retain"], rounds: int) -> tuple[list[Rows], Outcome]:
    """Updates of a few rounds from theta_0 on one part of the data, one `Rows` a client, and what the rounds have come to."""
    from ease_flwr.exchange.rounds import Plan, run_rounds
    from ease_flwr.store.history import History

    context = replace(context, phase=f"probe-{part}")
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder))
        plan = Plan(context.phase, rounds, history=history)
        outcome = run_rounds(context.federation, Probe(context, Probe.Params()), context.theta_0, plan)
        who = context.forget_clients if part == "forget" else context.clients
        columns = [history.columns(n) for n in who]
    return [partial(_rows, c) for c in columns], outcome


def _rows(columns: Vector, start: int, stop: int) -> Vector:
    return columns[start:stop]


def blocks_of(blocks: tuple[Block, ...], scope: Scope) -> Spans:
    """The blocks in which angles are measured. The image tower comes first in the vector."""
    if scope == "tensor":
        return [(b.start, b.stop) for b in blocks]
    edge = next(b.start for b in blocks if b.tower == "text")
    end = blocks[-1].stop
    return [(0, end)] if scope == "vector" else [(0, edge), (edge, end)]


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


def measure(params: GsdParams, columns: Columns, spans: Spans) -> Measured:
    """Principal angles block by block, and what any two clients share."""
    import torch

    from ease_flwr.model import subspaces

    angles, shared = [], []
    for (start, stop), (theirs, others) in zip(spans, at_once(spans, columns), strict=True):
        most = min(64, max(1, int(min(params.crowd * (stop - start), params.directions) / len(others))))
        support = subspaces.Support([subspaces.basis(m, params.energy, most) for m in others])
        angles.append(subspaces.principal_angles(subspaces.basis(torch.cat(theirs, dim=1), params.energy), support))
        shared.append(support.shared_with([subspaces.basis(m, params.energy) for m in theirs]).numpy())
    return Measured(spans, angles, np.mean(shared, axis=0))


def bases(params: GsdParams, angles: Sequence[Angles], tau: float, seed: int) -> list[Tensor]:
    """What is excised at a threshold, an orthonormal basis (p_b, q_b) for each block."""
    import torch

    from ease_flwr.model import subspaces

    unique = [subspaces.exclusive(a, tau) for a in angles]
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


def excised(theta: Vector, theta_0: Vector, spans: Spans, directions: Sequence[Tensor]) -> Vector:
    """theta without what was learnt along these directions since theta_0."""
    return on_numpy(around(theta_0, spans, directions).project, theta)


def facts(context: MethodContext, measured: Measured, unique: Sequence[Tensor], theta: Vector, start: Vector) -> dict[str, Any]:
    """What was found and cut, in all and block by block. start: theta after the excision."""
    towers = [{b.tower for b in context.blocks if i <= b.start < j} for i, j in measured.spans]
    count = {t: sum(u.shape[1] for u, w in zip(unique, towers, strict=True) if t in w) for t in ("visual", "text")}
    blocks = [
        {
            "tower": " and ".join(sorted(tower)),
            "cosines": [round(c, 3) for c in a.cosines.tolist()],
            "moved": round(float(np.linalg.norm((theta - context.theta_0)[i:j])), 4),
            "excised": round(float(np.linalg.norm((theta - start)[i:j])), 4),
        }
        for a, tower, (i, j) in zip(measured.angles, towers, measured.spans, strict=True)
    ]
    return {"unique": count, "blocks": blocks}


def overlap(context: MethodContext, measured: Measured) -> dict[str, Any]:
    """What any two clients' subspaces have in common, 0 to 1, by name; of the learn phase's updates."""
    names = [*context.leaving, *context.clients]
    order = np.argsort(names)
    return {"clients": sorted(names), "matrix": measured.shared[np.ix_(order, order)].round(3).tolist()}
