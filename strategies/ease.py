"""EASE: cut out of the adapters what only the forgotten brought, repair the rest, and lock the gap.

arXiv 2605.00733, from its published description; where that is silent the choice is ours.
Per block of the adapter vector, with M_k the weighted updates of client k as columns (p, T):

    U_f = basis(M_f)      U_r = basis of all span(M_k), k retained
    principal directions P of U_f with cosines c to U_r; sine part Z = (I - U_r U_r^T) P
    U_u = orthonormal basis of Z[:, c <= tau]                       the unique subspace (GSD)
    theta_E = theta_T - U_u U_u^T (theta_T - theta_0)               excision
    rounds: retained clients InfoNCE, holders of what is to be forgotten BKE (clients/bilateral.py), then
    theta <- theta_0 + (I - U_u U_u^T)(theta + sum_r a_r D_r + sum_f D_f - theta_0)      projection (PFL)

    afterwards U_u and the span of all D_f are locked where they are (forget lock)

The reference of the excision is theta_0: with the adapters at the request as reference the projection would remove nothing
that was learnt, and would forbid BKE to move in just the directions that matter. The lock also holds the directions in
which BKE has moved: what it displaced lies outside U_u for a good part, and comes back along the way it went.

Where a class or single pairs are withdrawn, the ordinary history cannot tell: every retained client's updates contain what is
to be forgotten, U_r swallows U_f and nothing is unique. There M_f and M_k come from probe rounds on the two parts of the
data, from theta_0, or BKE works alone (`gsd`). Holders stay, train on what they keep and do BKE in the same exchange.

Longer than a page: GSD, calibration, excision and lock are one decision about the same directions; a third of it are settings.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ease_flwr.core.config import ConfigError, Section, TrainConfig, searched
from ease_flwr.core.federation import Request
from ease_flwr.core.messages import Instruction, Update
from strategies._assisted import Assisted
from strategies.base import Setting, Unlearning, Vector, on_numpy

if TYPE_CHECKING:
    from torch import Tensor

    from ease_flwr.core.adapters import Block
    from ease_flwr.core.history import History
    from ease_flwr.core.lock import ForgetLock
    from ease_flwr.core.subspaces import Angles

Scope = Literal["tensor", "tower", "vector"]
Rows = Callable[[int, int], Vector]
"""Rows start to stop of somebody's updates, (stop - start, T): a block at a time is enough memory."""


class Ease(Assisted):
    """Subspace excision with bilateral knowledge excision, projection and forget lock."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "bilateral")
    history: ClassVar[Literal["", "updates", "rounds"]] = "updates"
    holders: ClassVar[Literal["not asked", "help", "needed"]] = "help"

    class Params(Section):
        rounds: int = Field(4, ge=1)
        """Rounds of the forget phase."""
        lr_end: float = Field(0.25, gt=0, le=1)
        """Learning rate of the retained clients in its last round, as a share of the learn phase's, with which it begins;
        linear in between."""
        gsd: Literal["auto", "history", "probe", "none"] = "auto"
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
        """Share of squared update norm that a client's basis holds."""
        crowd: float = Field(0.5, gt=0, le=1)
        """Share of a block's dimensions that the retained clients' bases may have in all, each an equal part. A crowded block
        has hardly anything left outside."""
        directions: int = Field(640, ge=1)
        """Directions that these bases may have in all, whatever the share allows: work grows with the square of it."""
        subspace: Literal["unique", "whole", "random"] = "unique"
        """What is excised. The others are foils: the whole forget subspace, or as many random directions."""
        project: bool = True
        """Whether the server projects after each round of the forget phase."""
        bke: bool = True
        """Whether holders help by bilateral excision; without, excision and projection work alone (parameters only)."""
        bke_lr: float = searched(5e-4, (2.5e-4, 5e-4, 1e-3), gt=0)
        """AdamW learning rate of BKE."""
        bke_epochs: int = Field(2, ge=1)
        """Local epochs of BKE in each round."""
        bke_batch: int = Field(64, ge=2)
        """Pairs in a BKE batch; as many public ones come beside them."""
        bke_weight: float = Field(30.0, ge=0)
        """w of the BKE loss, the similarity form."""
        bke_margin: float = Field(1.0, ge=0)
        """w_l, weight of the margin form."""
        bke_evidence: float = Field(0.375, ge=0, le=1)
        """How far excision must take a pair towards the level of unseen pairs for it to count as exclusive (0 to 1)."""
        bke_target: Literal["excised", "unseen", "zero-shot", "non-pair"] = "excised"
        """Where exclusive pairs go, see clients/bilateral.py."""
        bke_way: float = Field(0.5, gt=0, le=1)
        """How far each tower is displaced by itself: .5 is half-way, 1 the full way (too far, both move)."""
        bke_sides: Literal["both", "joint", "visual", "text"] = "both"
        """Which towers are displaced by themselves, beside the joint term."""
        lock: float = Field(20.0, ge=0)
        """lambda of the clients' half of the forget lock in the hold phase; 0 leaves it to the server's alone."""
        lock_share: float = Field(0.5, ge=0, le=1)
        """Server's half: the share of the drift along locked directions that is taken back after each round."""
        lock_halving: int = Field(0, ge=0)
        """Rounds of the hold phase after which both halves of the lock are half as strong, again and again; 0 never."""
        lock_release: int = Field(0, ge=0)
        """Rounds of the hold phase after which the lock is released; 0 never."""

    def __init__(self, setting: Setting, params: Section, lock: ForgetLock | None = None) -> None:
        super().__init__(setting, params, lock)
        self.steps: list[Vector] = []
        self.average = max(1, min(self.average, self.params.rounds // 2))
        self.spans = blocks_of(setting.blocks, "tensor")
        self.gap: ForgetLock | None = None

    def prepare(self, theta: Vector, history: History) -> Vector:
        p, forget = self.params, self.setting.forget
        staying = forget is not None and forget.scenario != "client"
        gsd = p.gsd if p.gsd != "auto" else "none" if staying else "history"
        if gsd == "history" and staying:
            raise ConfigError(
                "strategy.gsd=history: the updates of clients that stay contain what is to be forgotten, so nothing would be "
                "unique: use probe, none or auto"
            )
        bke = p.bke and bool(self.setting.holders)
        self.facts |= {"gsd": gsd, "bke": "loss" if bke else "param"}
        if bke:
            self.snapshot = {"request": theta}
        if gsd != "history":
            self.facts["server_bytes"] = 0
        if gsd == "none":
            if not bke:
                raise ConfigError("strategy ease: without GSD and without holders that help there is nothing to forget by")
            return theta
        if gsd == "history":
            sources: list[Sequence[Rows]] = [
                [partial(history.columns, n) for n in who] for who in (self.setting.leaving, self.setting.clients)
            ]
            theirs, others = sources
        else:
            theirs, others = self.probe("forget"), self.probe("retain")
        scope, tau, (angles, shared) = self.chosen(theta, theirs, others)
        self.spans = blocks_of(self.setting.blocks, scope)
        if bke and not staying:
            self.snapshot["teacher"] = self.excised(theta, self.bases(p.teacher_tau, angles), self.spans)
        unique = self.bases(tau, angles)
        towers = {t: sum(u.shape[1] for u, w in zip(unique, self.towers(), strict=True) if t in w) for t in ("visual", "text")}
        self.facts |= {"scope": scope, "tau": tau, "unique": towers}
        if not all(towers.values()):
            self.setting.federation.say(f"[forget] nothing unique in the {min(towers, key=towers.__getitem__)} tower")
        self.gap = self.around(self.setting.theta_0 if p.reference == "start" else theta, unique, self.spans)
        start = on_numpy(self.gap.project, theta)
        self.facts["blocks"] = [
            {
                "tower": " and ".join(sorted(tower)),
                "cosines": [round(c, 3) for c in a.cosines.tolist()],
                "moved": round(float(np.linalg.norm((theta - self.setting.theta_0)[i:j])), 4),
                "excised": round(float(np.linalg.norm((theta - start)[i:j])), 4),
            }
            for a, tower, (i, j) in zip(angles, self.towers(), self.spans, strict=True)
        ]
        if gsd == "history":
            names = [*self.setting.leaving, *self.setting.clients]
            order = np.argsort(names)
            matrix = shared[np.ix_(order, order)].round(3).tolist()
            self.facts["overlap"] = {"clients": sorted(names), "matrix": matrix}
        return start

    def instruct(self, phase: str, round: int) -> dict[str, Request]:
        requests = super().instruct(phase, round) if self.snapshot else Unlearning.instruct(self, phase, round)
        share = 1 - (1 - self.params.lr_end) * (round - 1) / max(1, self.params.rounds - 1)
        plain = self.setting.experiment.learn
        slower = {"train": plain.model_copy(update={"lr": share * plain.lr})}
        for name in self.setting.clients:
            told = requests[name]
            requests[name] = replace(told, instruction=told.instruction.model_copy(update=slower))
        return requests

    def job(self, phase: str, round: int) -> Instruction:
        p = self.params
        options: dict[str, float | str] = {"weight": p.bke_weight, "margin": p.bke_margin, "evidence": p.bke_evidence}
        options |= {"target": p.bke_target, "way": p.bke_way, "sides": p.bke_sides}
        return self.order(phase, round, "bilateral", TrainConfig(epochs=p.bke_epochs, batch=p.bke_batch, lr=p.bke_lr), options)

    def combine(self, theta: Vector, updates: dict[str, Update]) -> Vector:
        moved = self.retained(updates)
        if self.snapshot and any(n in self.setting.holders for n in updates):
            self.steps.append(self.step(theta, updates))
            moved = moved + self.steps[-1]
        if self.gap is not None and self.params.project:
            moved = on_numpy(self.gap.project, moved)
        return self.locked(moved)

    def lock_after(self, theta: Vector) -> ForgetLock:
        """What later rounds may not move back, from here: the unique subspace, the way BKE went, and older locks."""
        import torch

        from ease_flwr.core import subspaces

        steps = torch.from_numpy(np.stack([*self.steps, np.zeros_like(theta)], axis=1)).double()
        lock = self.around(theta, [subspaces.basis(steps[start:stop], energy=1.0) for start, stop in self.spans], self.spans)
        for older in (self.gap, self.lock):
            lock = lock if older is None else lock.and_also(older, torch.from_numpy(theta))
        return lock

    # ---- gradient subspace decomposition ------------------------------------------------------------------------

    def probe(self, part: Literal["forget", "retain"]) -> Sequence[Rows]:
        """Updates of a few rounds from theta_0 in which everybody trains on one part of the data only."""
        from ease_flwr.core.history import History

        who = self.setting.holders if part == "forget" else self.setting.clients
        rounds = Unlearning(replace(self.setting, clients=who), Unlearning.Params(), part=part)
        rounds.cost = self.cost
        with tempfile.TemporaryDirectory() as folder:
            history = History(Path(folder))
            rounds.run(f"probe-{part}", self.setting.theta_0, self.params.probe_rounds, lambda _: None, history=history)
            columns = [history.columns(n) for n in who]
        return [partial(_rows, c) for c in columns]

    def chosen(self, theta: Vector, forget: Sequence[Rows], retain: Sequence[Rows]) -> tuple[Scope, float, Measured]:
        """Scope and threshold, and what was measured in that scope: as set, or by one federated exchange on validation pairs.

        Of all candidates that cost the retained clients no more than `drop` of their recall the shallowest that brings what is
        to be forgotten to the level of unseen pairs, or comes nearest to it; measured as cross-entropy of the partner. Where
        no holder is left to say so, the deepest. Holders and half of the others judge; a retrained model is never looked at.
        """
        p = self.params
        scopes: list[Scope] = [p.scope] if p.scope else ["tensor", "tower", "vector"]
        taus = [p.tau] if p.tau is not None else sorted(p.taus)
        measured = {s: self.measure(forget, retain, blocks_of(self.setting.blocks, s)) for s in scopes}
        if len(scopes) * len(taus) == 1:
            return scopes[0], taus[0], measured[scopes[0]]
        models = {"as it is": theta}
        options: dict[str, tuple[Scope, float]] = {}
        for scope in scopes:
            spans = blocks_of(self.setting.blocks, scope)
            for tau in taus:
                label = f"{scope} {tau}"
                options[label] = scope, tau
                models[label] = self.excised(theta, self.bases(tau, measured[scope].angles), spans)
        draw = np.random.default_rng((self.setting.experiment.seed, 30)).permutation(self.setting.clients)
        judges = sorted({*self.setting.holders, *draw[: (len(draw) + 1) // 2].tolist()})
        found = self.setting.federation.validate(models, judges, self.setting.forget, self.cost)
        limit = (1 - p.drop) * found["as it is"].r1("retain")
        allowed = [label for label in options if found[label].r1("retain") >= limit]
        if not allowed:
            self.setting.federation.say("[forget] every excision costs too much of the rest: the shallowest is taken")
            allowed = [next(iter(options))]
        goal = found["as it is"].unseen
        best = max(allowed, key=lambda label: (min(found[label].level, goal), -options[label][1]))
        if math.isnan(goal):
            best = max(allowed, key=lambda label: options[label][1])
        self.facts["calibration"] = {
            label: {"retain": j.r1("retain"), "level": j.level, "unseen": j.unseen} for label, j in found.items()
        }
        scope, tau = options[best]
        self.setting.federation.say(f"[forget] calibrated: scope {scope}, tau {tau}")
        return scope, tau, measured[scope]

    def measure(self, forget: Sequence[Rows], retain: Sequence[Rows], spans: list[tuple[int, int]]) -> Measured:
        """Principal angles of the forgotten updates to the retained ones, block by block, and what any two clients share."""
        import torch

        from ease_flwr.core import subspaces

        p, angles, shared = self.params, [], []
        for start, stop, theirs, others in at_once(spans, forget, retain):
            most = min(64, max(1, int(min(p.crowd * (stop - start), p.directions) / len(others))))
            support = subspaces.Support([subspaces.basis(m, p.energy, most) for m in others])
            angles.append(subspaces.principal_angles(subspaces.basis(torch.cat(theirs, dim=1), p.energy), support))
            shared.append(support.shared_with([subspaces.basis(m, p.energy) for m in theirs]).numpy())
        return Measured(angles, np.mean(shared, axis=0))

    def bases(self, tau: float, angles: list[Angles]) -> list[Tensor]:
        """What is excised at a threshold, an orthonormal basis (p_b, q_b) for each block."""
        import torch

        from ease_flwr.core import subspaces

        unique = [subspaces.exclusive(a, tau) for a in angles]
        if self.params.subspace == "whole":
            return [a.principal for a in angles]
        if self.params.subspace == "random":
            draw = torch.Generator().manual_seed(self.setting.experiment.seed)
            return [torch.linalg.qr(torch.randn(u.shape, generator=draw, dtype=u.dtype))[0] for u in unique]
        return unique

    def excised(self, theta: Vector, bases: list[Tensor], spans: list[tuple[int, int]]) -> Vector:
        """theta without what was learnt along these directions since theta_0."""
        return on_numpy(self.around(self.setting.theta_0, bases, spans).project, theta)

    def around(self, reference: Vector, bases: list[Tensor], spans: list[tuple[int, int]]) -> ForgetLock:
        """These directions, locked at `reference`."""
        import torch

        from ease_flwr.core.lock import ForgetLock

        p = self.params
        rules = p.lock, p.lock_share, p.lock_halving, p.lock_release
        return ForgetLock.around(torch.from_numpy(reference), [start for start, _ in spans], bases, *rules)

    def towers(self) -> list[set[str]]:
        """Towers that each block of the chosen scope lies in."""
        return [{b.tower for b in self.setting.blocks if start <= b.start < stop} for start, stop in self.spans]


class Measured(NamedTuple):
    """Of all blocks of a scope."""

    angles: list[Angles]
    shared: NDArray[np.float64]
    """Mean over the blocks of what every two clients' subspaces have in common; those who leave come first."""


def _rows(columns: Vector, start: int, stop: int) -> Vector:
    return columns[start:stop]


def at_once(
    spans: list[tuple[int, int]], forget: Sequence[Rows], retain: Sequence[Rows], most: int = 2**27
) -> Iterator[tuple[int, int, list[Tensor], list[Tensor]]]:
    """(start, stop, updates of the first, updates of the others) block by block, float64 (stop - start, T) each.

    Several blocks are read at once, up to `most` numbers of all clients, as every read opens each round's file.
    """
    import torch

    rows = most // (forget[0](*spans[0]).shape[1] * (len(forget) + len(retain)))
    i = 0
    while i < len(spans):
        j = i + 1
        while j < len(spans) and spans[j][1] - spans[i][0] <= rows:
            j += 1
        begin, end = spans[i][0], spans[j - 1][1]
        theirs, others = ([source(begin, end) for source in who] for who in (forget, retain))
        for start, stop in spans[i:j]:
            part = slice(start - begin, stop - begin)
            now = [[torch.from_numpy(c.T[:, part]).double().T for c in who] for who in (theirs, others)]
            yield start, stop, now[0], now[1]
        i = j


def blocks_of(blocks: tuple[Block, ...], scope: Scope) -> list[tuple[int, int]]:
    """(start, stop) of the blocks in which angles are measured. The image tower comes first in the vector."""
    if scope == "tensor":
        return [(b.start, b.stop) for b in blocks]
    edge = next(b.start for b in blocks if b.tower == "text")
    end = blocks[-1].stop
    return [(0, end)] if scope == "vector" else [(0, edge), (edge, end)]
