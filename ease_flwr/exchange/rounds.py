"""Rounds of training: the one loop that every phase and every method runs in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ease_flwr.config import Experiment, digest
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.bounds import Usual
from ease_flwr.exchange.federation import Federation, Request
from ease_flwr.exchange.messages import Evaluate, seed_name
from ease_flwr.exchange.training import Vector, train
from ease_flwr.store.cost import Cost, Meter

if TYPE_CHECKING:
    from ease_flwr.store.history import History


class Rounds(Protocol):
    """What a method does in every round."""

    @property
    def average(self) -> int:
        """A phase ends with the mean of the global adapters of its last so many rounds."""
        ...

    def requests(self, round: int) -> dict[str, Request]:
        """Who does what in this round, by client name."""
        ...

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        """The next global adapters, from those that the round began with and what came back."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a phase is after a round."""

    phase: str
    round: int
    last: int
    asked: int
    updates: dict[str, Update]
    before: Vector
    """The adapters that the round began with."""
    theta: Vector
    """And those after it, or after the phase."""
    cost: Cost


@dataclass(frozen=True)
class Plan:
    """Rounds first .. first + rounds - 1 of a phase, or fewer where it is over before."""

    phase: str
    """Its name; with the number of a round it decides who is drawn."""
    rounds: int
    first: int = 1
    history: History | None = None
    """Where weighted updates are recorded, if anywhere."""
    recorded: tuple[str, ...] = ()
    """Whose; none named: everybody's."""
    evaluation_request: Callable[[int], Evaluate | None] = lambda round: None
    """The evaluation of the adapters before a round, if clients are to do one with its training."""
    usual: Mapping[str, float] = field(default_factory=dict)
    """By kind of work, length of an update in the earlier phases of the run, see bounds.Usual."""
    report: Callable[[Progress], None] = lambda progress: None
    """Told after every round."""
    over: Callable[[int, Vector], bool] = lambda round, theta: False
    """Asked after every round whether it was the last one, with the adapters that the phase would end with."""


@dataclass(frozen=True)
class Outcome:
    """Where the rounds have led."""

    theta: Vector
    cost: Cost
    failures: tuple[dict[str, Any], ...]
    usual: dict[str, float]
    """By kind of work, length of an update in these rounds."""


def run_rounds(federation: Federation, method: Rounds, theta: Vector, plan: Plan) -> Outcome:
    """Run the rounds of a plan from the adapters theta; ends with the mean of the last few global adapters.

    Raises FederationError below the quorum.
    """
    meter, failures = Meter(), list[dict[str, Any]]()
    notified: frozenset[str] = frozenset()
    recent: deque[Vector] = deque(maxlen=method.average)
    last = plan.first + plan.rounds - 1
    unsent, usual = np.zeros_like(theta), Usual(plan.usual)
    for round in range(plan.first, last + 1):
        requests = drawn(federation.experiment, plan.phase, round, method.requests(round))
        before, unsent = sendable(federation.experiment, theta, unsent)
        trained = train(federation, before, requests, notified, plan.evaluation_request(round), usual.lengths)
        meter.add(trained.cost)
        notified, updates = trained.notified, trained.updates
        failures += trained.failures
        with meter.on_server():
            usual.add(before, updates, {n: r.instruction for n, r in requests.items()})
            if plan.history is not None:
                total = sum(u.examples for u in updates.values())
                for name, update in ((n, u) for n, u in updates.items() if not plan.recorded or n in plan.recorded):
                    plan.history.append(round, name, np.float32(update.examples / total) * (update.adapters - before))
            theta = method.combine(round, before, updates)
            recent.append(theta)
            end = np.asarray(np.mean(recent, axis=0, dtype=np.float64), dtype=np.float32)
        last = round if plan.over(round, end) else last
        theta = end if round == last else theta
        plan.report(Progress(plan.phase, round, last, len(requests), updates, before, theta, meter.spent))
        if round == last:
            break
    return Outcome(theta, meter.spent, tuple(failures), usual.lengths)


def sendable(experiment: Experiment, theta: Vector, unsent: Vector) -> tuple[Vector, Vector]:
    """theta as it travels, and what of it stays behind for the next round.

    With federation.half it is rounded to float16, and the rest is kept (error feedback, arXiv 1901.09847).
    """
    if not experiment.federation.half:
        return theta, unsent
    wanted = theta + unsent
    sent = wanted.astype(np.float16).astype(np.float32)
    return sent, wanted - sent


def drawn(experiment: Experiment, phase: str, round: int, requests: dict[str, Request]) -> dict[str, Request]:
    """Those who take part in a round: a share of the clients, drawn by name, and everybody with a special job."""
    jobs: dict[str, Any] = {n: r.instruction for n, r in requests.items()}
    plain = sorted(n for n, job in jobs.items() if job.objective == "contrastive" and not getattr(job, "beside", None))
    count = max(1, _share(experiment.learn.fraction, len(plain))) if plain else 0
    if count == len(plain):
        return requests
    rng = np.random.default_rng(int(digest(experiment.seed, seed_name(phase), round)[:16], 16))
    skipped = set(rng.permutation(plain)[count:].tolist())
    return {n: r for n, r in requests.items() if n not in skipped}


def _share(fraction: float, count: int) -> int:
    return round(fraction * count)
