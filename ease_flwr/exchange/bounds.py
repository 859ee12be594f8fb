"""How much one client may weigh and move, whatever it says: its answer is shortened or counts for less, and is not lost.

A client says itself how many pairs it has, and sends what it likes. So both are set beside what the others say, and beside the
earlier rounds of the run (norm clipping: Sun et al., arXiv 1911.07963).
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ease_flwr.exchange.answers import Update

Vector = NDArray[np.float32]
FEW = 3
"""From so many answers on their median says what is usual in a round."""


def most_pairs(pairs: Collection[int], times: float) -> int:
    """So many pairs of one client count at most: `times` the median of those who have some, the lower one of two."""
    some = [n for n in pairs if n]
    return int(times * statistics.median_low(some)) if some else 0


@dataclass
class Usual:
    """How long an update usually is, from the rounds of a run so far."""

    before: float = 0.0
    """What was usual in earlier phases; 0: there were none."""
    rounds: list[float] = field(default_factory=list)
    """Median of each round of this phase."""

    @property
    def length(self) -> float:
        """The median of the rounds of this phase, before the first that of the earlier ones; 0 where there are none."""
        return statistics.median(self.rounds) if self.rounds else self.before

    def add(self, before: Vector, updates: Mapping[str, Update]) -> None:
        """Take in the updates of a round that began with the adapters `before`."""
        if updates:
            self.rounds.append(statistics.median(max(_lengths(before, u)) for u in updates.values()))


def in_proportion(
    theta: Vector, updates: Mapping[str, Update], times: float, usual: float
) -> tuple[dict[str, Update], dict[str, str]]:
    """The updates of a round, and a line about each that was shortened.

    What is more than `times` as long as is usual is shortened to what is usual: the median of the round, of three answers or
    more, unless that is itself out of proportion; else the median of earlier rounds; in the first round of all the length of
    the adapters themselves.  theta: the adapters that the round began with.  usual: see Usual.length.
    """
    lengths = {n: _lengths(theta, u) for n, u in updates.items()}
    limit = _reference([max(found) for found in lengths.values()], times, usual or float(np.linalg.norm(theta)))
    out, said = dict(updates), {}
    for name, found in lengths.items():
        if 0 < times * limit < max(found):
            out[name] = _shortened(theta, updates[name], limit, times)
            said[name] = f"update of norm {max(found):.3g} shortened to {limit:.3g}, which is usual (federation.norm_bound)"
    return out, said


def _reference(lengths: Sequence[float], times: float, earlier: float) -> float:
    """What is usual now."""
    middle = statistics.median(lengths) if len(lengths) >= FEW else 0.0
    return middle if 0 < middle <= times * earlier or not earlier else earlier


def _lengths(theta: Vector, update: Update) -> tuple[float, ...]:
    """Norm of what changed, and of what a second job changed."""
    moved = (update.adapters.astype(np.float64) - theta, *(() if update.step is None else (update.step.astype(np.float64),)))
    return tuple(float(np.linalg.norm(m)) for m in moved)


def _shortened(theta: Vector, update: Update, limit: float, times: float) -> Update:
    """The update with each part that is too long as long as `limit`, its direction as it was."""

    def short(moved: NDArray[np.float64]) -> Vector:
        length = float(np.linalg.norm(moved))
        return np.asarray(moved * (limit / length if length > times * limit else 1.0), dtype=np.float32)

    step = None if update.step is None else short(update.step.astype(np.float64))
    return replace(update, adapters=theta + short(update.adapters.astype(np.float64) - theta), step=step)
