"""How much one client may weigh and move, whatever it says: its answer is shortened or counts for less, and is not lost.

A client says itself how many pairs it has, and sends what it likes. So both are set beside what the others say, and beside the
earlier rounds of the run (norm clipping: Sun et al., arXiv 1911.07963).
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ease_flwr.exchange.answers import Update

Vector = NDArray[np.float32]
FEW = 3
"""From so many answers on their median says what is usual in a round."""
NEW = 2.0
"""Lengths of the adapters that an update may have where nothing else is known of its kind of work."""


def most_pairs(pairs: Collection[int], times: float) -> int:
    """So many pairs of one client count at most: `times` the median of those who have some, the lower one of two."""
    some = [n for n in pairs if n]
    return int(times * statistics.median_low(some)) if some else 0


@dataclass
class Usual:
    """How long an update of each kind of work usually is, from the rounds of a run so far."""

    before: Mapping[str, float] = field(default_factory=dict)
    """By kind of work: what was usual in earlier phases."""
    rounds: dict[str, list[float]] = field(default_factory=dict)
    """By kind of work: median of each round of this phase."""

    @property
    def lengths(self) -> dict[str, float]:
        """By kind of work: the median of the rounds of this phase, or where there are none, of the earlier ones."""
        return {**self.before, **{kind: statistics.median(found) for kind, found in self.rounds.items()}}

    def add(self, theta: Vector, updates: Mapping[str, Update], jobs: Mapping[str, Any]) -> None:
        """Take in a round: the adapters that it began with, what came back, and what each client was asked (Learn, Forget)."""
        for kind, found in _by_work(theta, updates, jobs).items():
            self.rounds.setdefault(kind, []).append(statistics.median(found.values()))


def in_proportion(
    theta: Vector, updates: Mapping[str, Update], jobs: Mapping[str, Any], times: float, usual: Mapping[str, float]
) -> tuple[dict[str, Update], dict[str, str]]:
    """The updates of a round, and a line about each that was shortened.

    What is more than `times` as long as is usual for its kind of work is cut to what is usual. That is the median of the round,
    of three answers or more, unless it is itself out of proportion to earlier rounds; else what earlier rounds had. Where
    there are no earlier ones, and one or two answers, an update may be NEW times as long as the adapters.

    theta: the adapters that the round began with.  jobs: what each was asked.  usual: see Usual.lengths.
    """
    limits = {
        kind: _reference([*found.values()], times, usual.get(kind, 0.0)) or NEW / times * float(np.linalg.norm(theta))
        for kind, found in _by_work(theta, updates, jobs).items()
    }
    out, said = dict(updates), {}
    for name, update in updates.items():
        parts = {part: (length, limits[kind]) for part, kind, length in _parts(theta, update, jobs[name])}
        if long := {part: of for part, of in parts.items() if 0 < times * of[1] < of[0]}:
            length, limit = max(long.values())
            out[name] = _shortened(theta, update, {part: of[1] / of[0] for part, of in long.items()})
            said[name] = f"update of norm {length:.3g} cut to {limit:.3g}, which is usual (federation.norm_bound)"
    return out, said


def _reference(lengths: Sequence[float], times: float, earlier: float) -> float:
    """What is usual now; 0 where nothing says it."""
    middle = statistics.median(lengths) if len(lengths) >= FEW else 0.0
    return middle if middle and (not earlier or middle <= times * earlier) else earlier


def work(job: Any) -> str:
    """What kind of work a Learn or a Forget is: its objective; learning some pairs alone is another kind."""
    return f"{job.objective} only" if getattr(job, "only", ()) else str(job.objective)


def _parts(theta: Vector, update: Update, job: Any) -> Iterator[tuple[str, str, float]]:
    """(part, kind of work, norm) of what changed, and of what a second job changed."""
    yield "adapters", work(job), float(np.linalg.norm(update.adapters.astype(np.float64) - theta))
    if update.step is not None:
        yield "step", work(job.beside), float(np.linalg.norm(update.step.astype(np.float64)))


def _by_work(theta: Vector, updates: Mapping[str, Update], jobs: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """kind of work -> client -> norm."""
    found: dict[str, dict[str, float]] = {}
    for name, update in updates.items():
        for _, kind, length in _parts(theta, update, jobs[name]):
            found.setdefault(kind, {})[name] = length
    return found


def _shortened(theta: Vector, update: Update, by: Mapping[str, float]) -> Update:
    """The update with these parts at so much of their length, their direction as it was."""
    adapters, step = update.adapters, update.step
    if "adapters" in by:
        adapters = theta + np.asarray((adapters.astype(np.float64) - theta) * by["adapters"], dtype=np.float32)
    if step is not None and "step" in by:
        step = np.asarray(step.astype(np.float64) * by["step"], dtype=np.float32)
    return replace(update, adapters=adapters, step=step)
