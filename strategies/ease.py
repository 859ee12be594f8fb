"""EASE: cut out of the adapters what only the forgotten brought, repair the rest, and lock the gap.

arXiv 2605.00733, from its published description; where that is silent the choice is ours. U_u is the unique subspace that
strategies/gsd.py finds, block by block of the adapter vector.

    theta_E = theta_T - U_u U_u^T (theta_T - theta_0)               excision
    rounds: retained clients InfoNCE, forget clients BKE (clients/bilateral.py), then
    theta <- theta_0 + (I - U_u U_u^T)(theta + sum_r a_r D_r + sum_f D_f - theta_0)      projection (PFL)

    afterwards U_u and the span of all D_f are locked where they are (forget lock)

The reference of the excision is theta_0: with the adapters at the request as reference the projection would remove nothing
that was learnt, and would forbid BKE to move in just the directions that matter. The lock also has the directions in
which BKE has moved: what it displaced lies outside U_u for a good part, and comes back along the way it went.

Where a class or single pairs are withdrawn, forget clients stay: they train on what they keep and do BKE in the same exchange,
and BKE works alone unless probe rounds are asked for (`gsd.source`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ease_flwr.config import ConfigError, Section, TrainConfig, searched
from ease_flwr.config.renamed import EASE
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.federation import Request
from strategies import calibration, gsd
from strategies.assisted import beside, forget_job, retained, step
from strategies.base import Method, MethodContext, Vector, on_numpy
from strategies.gsd import GsdParams

if TYPE_CHECKING:
    from ease_flwr.model.lock import ForgetLock
    from ease_flwr.store.history import History


class BkeParams(Section):
    """Bilateral knowledge excision: what forget clients do in each round."""

    enabled: bool = True
    """Whether forget clients help by it; without, excision and projection work alone (parameters only)."""
    lr: float = searched(5e-4, (2.5e-4, 5e-4, 1e-3), gt=0)
    """AdamW learning rate."""
    epochs: int = Field(2, ge=1)
    """Local epochs in each round."""
    batch: int = Field(64, ge=2)
    """Pairs in a batch; as many public ones come beside them."""
    weight: float = Field(30.0, ge=0)
    """w of the loss, the similarity form."""
    margin: float = Field(1.0, ge=0)
    """w_l, weight of the margin form."""
    evidence: float = Field(0.375, ge=0, le=1)
    """How far excision must take a pair towards the level of unseen pairs for it to count as exclusive (0 to 1)."""
    target: Literal["excised", "unseen", "zero-shot", "non-pair"] = "excised"
    """Where exclusive pairs go, see clients/bilateral.py."""
    way: float = Field(0.5, gt=0, le=1)
    """How far each tower is displaced by itself: .5 is half-way, 1 the full way (too far, both move)."""
    sides: Literal["both", "joint", "visual", "text"] = "both"
    """Which towers are displaced by themselves, beside the joint term."""

    @property
    def options(self) -> dict[str, float | str]:
        """What the loss is told."""
        return self.model_dump(exclude={"enabled", "lr", "epochs", "batch"})


class LockParams(Section):
    """The forget lock in later rounds."""

    strength: float = Field(20.0, ge=0)
    """lambda of the clients' half of the lock in the continuation; 0 leaves it to the server's alone."""
    share: float = Field(0.5, ge=0, le=1)
    """Server's half: the share of the drift along locked directions that is taken back after each round."""
    halving: int = Field(0, ge=0)
    """Rounds of the continuation after which both halves of the lock are half as strong, again and again; 0 never."""
    release: int = Field(0, ge=0)
    """Rounds of the continuation after which the lock is released; 0 never."""


SAID = frozenset(("exclusive", "pairs", "share", "partner_loss", "goal"))
"""What a forget client says of its step, see clients/bilateral.py: finish."""


def together(said: Collection[Mapping[str, float]]) -> dict[str, Any]:
    """All forget clients as one: sums of `exclusive` and `pairs`, how many took no step (`idle`), and means of the rest over
    the exclusive pairs, None where there are none."""
    exclusive = sum(own["exclusive"] for own in said)
    found: dict[str, Any] = {"clients": len(said), "exclusive": int(exclusive), "pairs": int(sum(own["pairs"] for own in said))}
    found["idle"] = sum(not own["share"] for own in said)
    for key in ("share", "partner_loss", "goal"):
        found[key] = sum(own[key] * own["exclusive"] for own in said) / exclusive if exclusive else None
    return found


def named(clients: Collection[str]) -> str:
    """One client by its name, several by their number."""
    return next(iter(clients)) if len(clients) == 1 else f"{len(clients)} clients"


class Ease(Method):
    """Subspace excision with bilateral knowledge excision, projection and forget lock."""

    class Params(Section):
        rounds: int = Field(4, ge=1)
        """Exchanges of the forget phase; probe rounds and calibration come before them."""
        lr_end: float = Field(0.25, gt=0, le=1)
        """Learning rate of the retained clients in its last round, as a share of the learn phase's, with which it begins;
        linear in between."""
        gsd: GsdParams = GsdParams()
        bke: BkeParams = BkeParams()
        lock: LockParams = LockParams()
        project: bool = True
        """Whether the server projects after each round of the forget phase."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "bilateral")
    history: ClassVar[Literal["", "updates", "rounds"]] = "updates"
    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "help"
    renamed: ClassVar[Mapping[str, str]] = EASE

    @classmethod
    def needs_help(cls, params: Any, scenario: str) -> bool:
        """Without help there is what the recorded updates tell; of clients that stay they tell nothing."""
        source = params.gsd.source
        return source in ("none", "probe") or (source == "auto" and scenario != "client")

    def __init__(self, context: MethodContext, params: Any, lock: ForgetLock | None = None) -> None:
        super().__init__(context, params, lock)
        self.average = max(1, min(self.average, params.rounds // 2))
        self.snapshot: dict[str, Vector] = {}
        """What forget clients get with their first message; empty where they do no BKE."""
        self.steps: list[Vector] = []
        """The way BKE went, round by round."""
        self.spans = gsd.blocks_of(context.blocks, "tensor")
        self.gap: ForgetLock | None = None

    def prepare(self, theta: Vector, history: History) -> Vector:
        p, context = self.params, self.context
        source = gsd.source(context, p.gsd)
        bke = p.bke.enabled and bool(context.forget_clients)
        if source == "none" and not bke:
            raise ConfigError("strategy ease: without GSD and without forget clients that help there is nothing to forget by")
        self.facts |= {"gsd": source, "bke": "loss" if bke else "param", **({} if source == "history" else {"server_bytes": 0})}
        self.snapshot = {"request": theta} if bke else {}
        if source == "none":
            return theta
        columns = gsd.recorded(context, history) if source == "history" else self.probed()
        choice = calibration.choose(context, p.gsd, theta, columns)
        self.meter.add(choice.cost)
        return self.cut(theta, choice, source)

    def probed(self) -> gsd.Columns:
        """Updates of probe rounds on the two parts of the data."""
        found = [gsd.probe(self.context, part, self.params.gsd.probe_rounds) for part in ("forget", "retain")]
        for _, outcome in found:
            self.meter.add(outcome.cost)
            self.failures += outcome.failures
        return gsd.Columns(*(rows for rows, _ in found))

    def cut(self, theta: Vector, choice: calibration.Choice, source: str) -> Vector:
        """theta after the excision; the gap that it leaves, and the teacher of BKE."""
        p, context = self.params.gsd, self.context
        self.spans, angles, _ = choice.measured
        seed, start = context.experiment.seed, context.theta_0
        if self.snapshot and context.leaving:
            deeper = gsd.bases(p, angles, p.teacher_tau, seed)
            self.snapshot["teacher"] = gsd.excised(theta, start, self.spans, deeper)
        unique = gsd.bases(p, angles, choice.tau, seed)
        self.gap = self.around(start if p.reference == "start" else theta, unique)
        after = on_numpy(self.gap.project, theta)
        self.facts |= {"calibration": choice.facts} if choice.facts else {}
        self.facts |= {"scope": choice.scope, "tau": choice.tau, **gsd.facts(context, choice.measured, unique, theta, after)}
        if source == "history":
            self.facts["overlap"] = gsd.overlap(context, choice.measured)
        if not all((towers := self.facts["unique"]).values()):
            context.federation.say(f"[{context.phase}] nothing unique in the {min(towers, key=towers.__getitem__)} tower")
        return after

    def requests(self, round: int) -> dict[str, Request]:
        p, plain = self.params, self.context.experiment.learn
        share = 1 - (1 - p.lr_end) * (round - 1) / max(1, p.rounds - 1)
        requests = self.learners(round, train=plain.model_copy(update={"lr": share * plain.lr}))
        if not self.snapshot:
            return requests
        train = TrainConfig(epochs=p.bke.epochs, batch=p.bke.batch, lr=p.bke.lr)
        job = forget_job(self.context, round, "bilateral", train, p.bke.options)
        return beside(self.context, requests, job, self.snapshot)

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        moved = retained(self.context, updates)
        helping = {n: u for n, u in updates.items() if n in self.context.forget_clients}
        if self.snapshot and helping:
            self.note(round, {n: u.own for n, u in helping.items() if u.own.keys() >= SAID})
            self.steps.append(step(self.context, theta, updates))
            moved = moved + self.steps[-1]
        if self.gap is not None and self.params.project:
            moved = on_numpy(self.gap.project, moved)
        return self.locked(round, moved)

    def note(self, round: int, said: Mapping[str, Mapping[str, float]]) -> None:
        """What BKE did in a round: a line, and all forget clients together among the facts. said: client -> SAID."""
        if not said:
            return
        done = together(said.values())
        self.facts.setdefault("bke_rounds", []).append({"round": round, **done})
        where, who = f"[{self.context.phase} {round}/{self.params.rounds}]", named(said)
        line = f"{where} BKE of {who}: {done['exclusive']} of {done['pairs']} pairs exclusive"
        if done["exclusive"]:
            line += (
                f", {done['share']:.2f} of the step taken, partner loss {done['partner_loss']:.2f} (goal {done['goal']:.2f})"
            )
        self.context.federation.say(line)
        if idle := [n for n, own in said.items() if own["exclusive"] and not own["share"]]:
            why = "its exclusive pairs are at the goal, or past it, without a step"
            self.context.federation.say(f"{where} BKE does nothing for {named(idle)}: share 0, {why}")

    def lock_after(self, theta: Vector) -> ForgetLock:
        """What later rounds may not move back, from here: the unique subspace, the way BKE went, and older locks."""
        import torch

        from ease_flwr.model import subspaces

        steps = torch.from_numpy(np.stack([*self.steps, np.zeros_like(theta)], axis=1)).double()
        lock = self.around(theta, [subspaces.basis(steps[start:stop], energy=1.0) for start, stop in self.spans])
        for older in (self.gap, self.lock):
            lock = lock if older is None else lock.and_also(older, torch.from_numpy(theta))
        return lock

    def around(self, reference: Vector, directions: list[Any]) -> ForgetLock:
        """These directions, locked at `reference` by the settings of the lock."""
        lock = self.params.lock
        return gsd.around(reference, self.spans, directions, lock.strength, lock.share, lock.halving, lock.release)
