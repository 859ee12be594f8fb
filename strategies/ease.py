"""EASE: cut out of the adapters what only the forgotten brought, repair the rest, and hold the gap.

arXiv 2605.00733, from its published description; where that is silent the choice is ours. U_u is the unique subspace that
strategies/gsd.py finds, block by block of the adapter vector.

    theta_E = theta_T - U_u U_u^T (theta_T - theta_0)               excision, where clients leave
    theta_E = theta_T - c (theta_T - theta_0)                       elsewhere shrinking, with c = `shrink`
    rounds: theta <- theta + sum_r a_r D_r + sum_f D_f              retained clients InfoNCE, forget clients BKE
            theta <- theta - s U_u U_u^T (theta - theta_0)          projection (PFL), with s = `projection`

    afterwards U_u and the span of all D_f are locked where they are (forget lock)

The reference of the excision is theta_0: with the adapters at the request as reference it would remove nothing that was learnt.
What retained clients learn again along U_u is not forbidden, it is damped: a retrained model goes there a little too.

Where a class or single pairs are withdrawn nothing is unique. There a share of everything learnt is taken back, as by
interpolation with theta_0 (Wortsman et al., arXiv 2109.01903). The repair brings back what retained pairs teach, and only that.
How single pairs look to a model that never saw them tells the excision of their client: it is the teacher of BKE, and no more.

Where clients leave nobody has to help. BKE (clients/bilateral.py) works where nothing is excised, unless `bke.enabled` says
otherwise: where a class or single pairs are withdrawn. There forget clients stay. They train on what they keep and do BKE in
the same exchange. The lock also has the directions in which BKE has moved: what it displaced comes back along the way it went.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from ease_flwr.strategies import gsd
from ease_flwr.strategies.assisted import beside, forget_job, retained, step
from ease_flwr.strategies.base import Method, MethodContext, Vector, on_numpy
from ease_flwr.strategies.gsd import GsdParams
from ease_flwr.strategies.ordinary import packed
from pydantic import Field

from ease_flwr.config import ConfigError, Experiment, Section, TrainConfig, searched
from ease_flwr.config.renamed import EASE
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.federation import Request

if TYPE_CHECKING:
    from ease_flwr.model.lock import ForgetLock
    from ease_flwr.store.history import History


class BkeParams(Section):
    """Bilateral knowledge excision: what forget clients do in each round."""

    enabled: bool | None = None
    """Whether forget clients help by it; None: where nothing is excised."""
    rate: float = Field(0.4, gt=0)
    """AdamW learning rate, as a share of the learn phase's."""
    epochs: int = Field(1, ge=1)
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
    """Which terms of the loss are used: all three, the joint one alone, or that of one tower alone."""

    @property
    def options(self) -> dict[str, float | str]:
        """What the loss is told."""
        return self.model_dump(exclude={"enabled", "rate", "epochs", "batch"})


class LockParams(Section):
    """The forget lock in later rounds."""

    strength: float | None = Field(None, ge=0)
    """lambda of the clients' half of the lock in the continuation. At 0 there is the server's alone, and no client is sent the
    directions. None: 20 where BKE works, which moves pairs away and does not undo what was learnt; elsewhere 0."""
    share: float | None = Field(None, ge=0, le=1)
    """Server's half: the share of the drift along locked directions that is taken back after each round. None: .5 where BKE
    works, elsewhere .1."""
    inside: bool = False
    """Whether retained clients hold it in the forget phase too, as published; it needs a strength."""
    halving: int = Field(0, ge=0)
    """Rounds of the continuation after which both halves of the lock are half as strong, again and again; 0 never."""
    release: int = Field(0, ge=0)
    """Rounds of the continuation after which the lock is released; 0 never."""

    def rules(self, bke: bool) -> tuple[float, float, int, int]:
        """Strength, share, halving and release. bke: whether BKE works."""
        strength, share = (20.0, 0.5) if bke else (0.0, 0.1)
        strength = strength if self.strength is None else self.strength
        return strength, share if self.share is None else self.share, self.halving, self.release


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

    class Params(Method.Params):
        gsd: GsdParams = GsdParams()
        bke: BkeParams = BkeParams()
        lock: LockParams = LockParams()
        projection: float = searched(0.1, (0.05, 0.1, 0.25), ge=0, le=1)
        """Share of what came back along the unique subspace that the server takes away after each round of the forget phase."""
        shrink: float = Field(0.25, ge=0, lt=1)
        """Share of everything learnt that the server takes back before the repair, where nothing is excised."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive", "bilateral")
    history: ClassVar[Literal["", "updates", "rounds"]] = "updates"
    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "help"
    renamed: ClassVar[Mapping[str, str]] = EASE

    @classmethod
    def check(cls, name: str, experiment: Experiment, scenario: str) -> Section:
        params: Any = super().check(name, experiment, scenario)
        source = gsd.source(scenario, params.gsd)
        if source == "none" and not cls.bke(params, source) and not params.shrink:
            raise ConfigError(f"strategy {name}: nothing forgets a {scenario} without GSD, BKE and shrinking: leave one on")
        if params.lock.inside and not params.lock.strength:
            raise ConfigError(f"strategy {name}: lock.inside=true holds nothing at lock.strength=0: give it a strength")
        return params

    @classmethod
    def bke(cls, params: Any, source: str) -> bool:
        """Whether forget clients are asked for BKE."""
        wanted = source == "none" if params.bke.enabled is None else params.bke.enabled
        return bool(wanted) and cls.forget_clients != "not asked"

    @classmethod
    def needs_help(cls, params: Any, scenario: str) -> bool:
        """Without help there is what the recorded updates tell; of clients that stay they tell nothing."""
        source = params.gsd.source
        return (source == "none" or (source == "auto" and scenario != "client")) and cls.bke(params, "none")

    def __init__(self, context: MethodContext, params: Any, lock: ForgetLock | None = None) -> None:
        super().__init__(context, params, lock)
        self.snapshot: dict[str, Vector] = {}
        """What forget clients get with their first message; empty where they do no BKE."""
        self.teachers: dict[str, Vector] = {}
        """More of it for single clients."""
        self.steps: list[Vector] = []
        """The way BKE went, round by round."""
        self.spans: gsd.Spans = [(b.start, b.stop) for b in context.blocks]
        self.gap: ForgetLock | None = None
        self.works = False
        """Whether BKE works."""

    def prepare(self, theta: Vector, history: History) -> Vector:
        p, context = self.params, self.context
        assert context.forget is not None
        source = gsd.source(context.forget.scenario, p.gsd)
        wanted = self.bke(p, source)
        bke = self.works = wanted and bool(context.forget_clients)
        if source == "none" and wanted and not bke:
            raise ConfigError("strategy ease: without GSD and without forget clients that help there is nothing to forget by")
        self.reads_history = source == "history"
        self.facts |= {"gsd": source, "bke": "loss" if bke else "param"}
        start = self.cut(theta, history) if source == "history" else self.shrunk(theta)
        if bke:
            self.snapshot = {"request": theta} | ({} if self.gap is None else {"teacher": start})
            self.teachers = self.without(theta, history) if source == "none" else {}
            self.reads_history |= bool(self.teachers)
        return start

    def without(self, theta: Vector, history: History) -> dict[str, Vector]:
        """By forget client, theta after an excision as if this client left: how its single pairs look to a model without it.

        Of a class there is none: others know it too. Nor is there one where the updates of the client are gone.
        """
        context, p = self.context, self.params.gsd
        found: dict[str, Vector] = {}
        if context.forget is None or context.forget.scenario != "sample" or self.params.bke.target != "excised":
            return found
        for name in filter(history.knows, context.forget_clients):
            columns = gsd.recorded(context, history, (name,))
            if not columns.retain:
                continue
            measured = gsd.measure(p, columns, context.blocks)
            unique = gsd.bases(p, measured.angles, context.experiment.seed)
            found[name] = on_numpy(gsd.around(context.theta_0, measured.spans, unique, 0.0).project, theta)
        return found

    def cut(self, theta: Vector, history: History) -> Vector:
        """theta after the excision, and the gap that it leaves."""
        p, context = self.params.gsd, self.context
        measured = gsd.measure(p, gsd.recorded(context, history, context.leaving), context.blocks)
        self.spans, unique = measured.spans, gsd.bases(p, measured.angles, context.experiment.seed)
        self.gap = self.around(context.theta_0 if p.reference == "start" else theta, unique)
        after = on_numpy(self.gap.project, theta)
        names = [*filter(history.knows, context.leaving), *gsd.took_part(context, history)]
        self.facts |= {"tau": p.tau, **gsd.facts(context, names, measured, unique, theta, after)}
        if not all((towers := self.facts["unique"]).values()):
            context.federation.say(f"[{context.phase}] nothing unique in the {min(towers, key=towers.__getitem__)} tower")
        return after

    def shrunk(self, theta: Vector) -> Vector:
        """theta a share nearer to theta_0, but not along what an older lock holds."""
        start: Vector = theta - np.float32(self.params.shrink) * (theta - self.context.theta_0)
        return start if self.lock is None else theta + on_numpy(self.lock.project, start) - on_numpy(self.lock.project, theta)

    def requests(self, round: int) -> dict[str, Request]:
        p = self.params
        name, once = packed(replace(self.gap, halving=0, release=0) if self.gap and p.lock.inside else None)
        requests = {n: replace(r, once=once) for n, r in self.learners(round, lock=name).items()}
        if not self.snapshot:
            return requests
        learn = self.context.experiment.learn
        train = TrainConfig(epochs=p.bke.epochs, batch=p.bke.batch, lr=p.bke.rate * learn.lr, clip=learn.clip)
        job = forget_job(self.context, round, "bilateral", train, p.bke.options)
        found = beside(self.context, requests, job, self.snapshot)
        return found | {n: replace(found[n], once={**found[n].once, "teacher": t}) for n, t in self.teachers.items()}

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        moved = retained(self.context, updates)
        helping = {n: u for n, u in updates.items() if n in self.context.forget_clients}
        if self.snapshot and helping:
            self.note(round, {n: u.own for n, u in helping.items() if u.own.keys() >= SAID})
            self.steps.append(step(self.context, theta, updates))
            moved = moved + self.steps[-1]
        if self.gap is not None:
            moved = on_numpy(partial(self.gap.shift, share=self.params.projection), moved)
        return self.locked(round, moved)

    def note(self, round: int, said: Mapping[str, Mapping[str, float]]) -> None:
        """What BKE did in a round: a line, and all forget clients together among the facts. said: client -> SAID."""
        if not said:
            return
        done = together(said.values())
        self.facts.setdefault("bke_rounds", []).append({"round": round, **done})
        where, who = f"[{self.context.phase} {round}/{self.rounds}]", named(said)
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
        return gsd.around(reference, self.spans, directions, *self.params.lock.rules(self.works))
