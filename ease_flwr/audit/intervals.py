"""Intervals by resampling members: all queries about one label are drawn together, a pair without a label by itself.

An Estimate is a number, with what it would have been in each draw. Draws depend on the number of members alone, so those of
two models are paired: the interval of a difference is that of the differences. Few members spread less in their draws than in
truth, so draws are stretched by Student's t (Hesterberg, arXiv 1411.5279, widens percentiles for the same reason).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
DRAWS = 1000
"""Bootstrap samples."""
NORMAL = 1.96
"""Standard deviations to either side that hold 95 % of a normal distribution."""
NAN = float("nan")


@dataclass(frozen=True)
class Measure:
    """A number of one model, and how far it lies above the reference's, with 95 % intervals. NaN where it does not apply."""

    value: float
    low: float = NAN
    high: float = NAN
    gap: float = NAN
    gap_low: float = NAN
    gap_high: float = NAN
    noise: float = NAN
    """s: how far one training's number lies from another's, as a standard deviation (noise.py)."""
    cells: int = 0
    """From how many pairs of retrainings s is known."""

    def at_least(self, half: float) -> Self:
        """The same with intervals that reach so far to either side, at least; none where there is none."""
        own, gap = (self.value, self.low, self.high), (self.gap, self.gap_low, self.gap_high)
        (low, high), (gap_low, gap_high) = ((min(lo, x - half), max(hi, x + half)) for x, lo, hi in (own, gap))
        return replace(self, low=low, high=high, gap_low=gap_low, gap_high=gap_high)

    def with_noise(self, noise: float, cells: int) -> Self:
        """The same where s is known: no interval is narrower than what 95 % of trainings spread over."""
        return replace(self.at_least(NORMAL * noise), noise=noise, cells=cells)


@dataclass(frozen=True)
class Estimate:
    """A number, and what it would be in each draw of members."""

    value: float
    draws: Numbers | None = None
    """(DRAWS,); None where there is one member, which has no interval."""
    units: int = 0
    """Members that are drawn."""
    query: float = 0.0
    """By how much one query can change it: no interval is narrower, for zero width is no certainty."""


def compared(own: Estimate, references: Sequence[Estimate] = ()) -> Measure:
    """A number beside the mean of the references' on the same members: model minus reference."""
    low, high = _ends(own.value, own.draws, own.units)
    out = Measure(own.value, low, high)
    if references:
        theirs = averaged(references)
        gap = own.value - theirs.value
        draws = own.draws - theirs.draws if own.draws is not None and theirs.draws is not None else None
        gap_low, gap_high = _ends(gap, draws, own.units)
        out = replace(out, gap=gap, gap_low=gap_low, gap_high=gap_high)
    return out.at_least(own.query)


def averaged(found: Sequence[Estimate]) -> Estimate:
    """The mean of several numbers about the same members."""
    draws = [e.draws for e in found if e.draws is not None]
    mean = float(np.mean([e.value for e in found]))
    query = float(np.mean([e.query for e in found])) / len(found)
    return replace(found[0], value=mean, query=query, draws=np.mean(draws, axis=0) if len(draws) == len(found) else None)


POSSIBLE = {
    ("r1", "r5", "r10", "people", "backdoor", "relearn", "cross", "swap"): (0.0, 100.0),
    ("membership", "probe", "chance"): (0.0, 1.0),
    ("similarity", "correlation"): (-1.0, 1.0),
    ("wording",): (0.0, 50.0),
    ("distance",): (0.0, 2.0),
    ("median_rank",): (1.0, math.inf),
}
"""Between which ends numbers lie: shares in percent, AUCs, cosines, and so on."""


def possible(key: str, m: Measure) -> Measure:
    """The same with intervals that end where there is nothing beyond; key: the name of the number."""
    least, most = next((ends for kinds, ends in POSSIBLE.items() if key.partition(".")[0] in kinds), (-math.inf, math.inf))
    wide = most - least
    gap_low, gap_high = max(m.gap_low, min(-wide, m.gap)), min(m.gap_high, max(wide, m.gap))
    if key == "relearn.area":  # it is a gap itself
        return replace(m, low=gap_low, high=gap_high, gap_low=gap_low, gap_high=gap_high)
    low, high = max(m.low, min(least, m.value)), min(m.high, max(most, m.value))
    return replace(m, low=low, high=high, gap_low=gap_low, gap_high=gap_high)


def between(one: Estimate, other: Estimate) -> Estimate:
    """The difference of two numbers about different members, which are drawn by themselves; as sure as the fewer are."""
    draws = one.draws - other.draws if one.draws is not None and other.draws is not None else None
    return Estimate(one.value - other.value, draws, min(one.units, other.units), max(one.query, other.query))


def _ends(value: float, draws: Numbers | None, units: int) -> tuple[float, float]:
    if draws is None:
        return NAN, NAN
    low, high = (value + _stretch(units) * (float(q) - value) for q in np.nanpercentile(draws, [2.5, 97.5]))
    return low, high


def _stretch(units: int) -> float:
    """How much wider draws of so few units have to be."""
    return student(units - 1) / NORMAL * math.sqrt(units / (units - 1))


def student(freedom: int) -> float:
    """What a t distribution of so many degrees of freedom exceeds in 2.5 % of cases (Cornish-Fisher; one degree: exact)."""
    n = float(freedom)
    return 12.706 if freedom == 1 else NORMAL + 2.372 / n + 2.823 / n**2 + 2.556 / n**3 + 1.6 / n**4


def members(labels: Numbers) -> NDArray[np.intp]:
    """Which member each pair belongs to, (n,) from 0: a label is one, a pair without (-1) is one by itself."""
    known = labels >= 0
    out = np.empty(len(labels), np.intp)
    found, out[known] = np.unique(labels[known], return_inverse=True)
    out[~known] = len(found) + np.arange((~known).sum())
    return out


@lru_cache(maxsize=16)
def drawn(count: int, seed: int = 0) -> NDArray[np.float32]:
    """How often each of so many members is in each draw, (DRAWS, count)."""
    rng = np.random.default_rng(seed)
    out = np.empty((DRAWS, count), np.float32)
    for row in out:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    return out


def shares(hits: Sequence[Numbers], of: Sequence[Numbers], seed: int = 0) -> Estimate:
    """Percent of hits (k,) among queries (k,), by member; the mean over several directions. Raises ValueError where there are
    more hits than queries: no share is above 100 %. seed: of the draws; other members are drawn with another one."""
    for h, n in zip(hits, of, strict=True):
        if (h > n).any():
            raise ValueError(f"{h.max():g} hits of {n[h.argmax()]:g} queries: more than 100 %")
    return _ratio([100 * h for h in hits], of, max(100 / len(of) / n.sum() for n in of), seed)


def _ratio(sums: Sequence[Numbers], counts: Sequence[Numbers], query: float, seed: int) -> Estimate:
    """Mean over parts of a ratio of sums by member (k,)."""
    k = len(counts[0])
    value = float(np.mean([s.sum() / n.sum() for s, n in zip(sums, counts, strict=True)]))
    if k < 2:
        return Estimate(value, query=query)
    w = drawn(k, seed)
    return Estimate(value, np.mean([(w @ s) / (w @ n) for s, n in zip(sums, counts, strict=True)], axis=0), k, query)


def mean(values: Numbers, member: NDArray[np.intp], seed: int = 0) -> Estimate:
    """Mean of values (n,) of these members (n,). seed: as of `shares`."""
    return _ratio([_sums(member, values)], [_counted(member)], 0.0, seed)


def share_of(found: Sequence[NDArray[Any]], member: Sequence[NDArray[np.intp]], seed: int = 0) -> Estimate:
    """Percent of queries (n,) that are found (1 or 0), of these members (n,); the mean over several directions. seed: as of
    `shares`."""
    hits = [_sums(m, f) for f, m in zip(found, member, strict=True)]
    return shares(hits, [_counted(m) for m in member], seed)


def _sums(member: NDArray[np.intp], values: NDArray[Any]) -> Numbers:
    """Of each member, (k,)."""
    return np.asarray(np.bincount(member, values), dtype=np.float64)


def _counted(member: NDArray[np.intp]) -> Numbers:
    """Pairs of each member, (k,)."""
    return _sums(member, np.ones(len(member)))


def shares_of_batches(hits: Numbers, of: Numbers) -> Estimate:
    """Percent of hits (orders of batches, k, 2) among the queries (k, 2) of k members, mean over both directions and over the
    orders. Members are drawn, and orders, which are stretched as the few that they are. Raises ValueError where there are more
    hits than queries."""
    by_order = [shares(list(h.T), list(of.T)) for h in hits]
    values, first = np.array([e.value for e in by_order]), by_order[0]
    found = replace(first, value=float(values.mean()), draws=None)
    draws = [e.draws for e in by_order if e.draws is not None]
    if not draws:
        return found
    by_member = np.mean(draws, axis=0)
    if len(hits) == 1:  # no sample of orders
        return replace(found, draws=by_member)
    apart = drawn(len(hits), seed=1) @ values / len(hits) - found.value
    return replace(found, draws=by_member + _stretch(len(hits)) / _stretch(first.units) * apart)


def median(values: Numbers, member: NDArray[np.intp]) -> Estimate:
    """Median of whole numbers (n,)."""
    k, (levels, level) = 1 + int(member.max()), np.unique(values, return_inverse=True)
    table = np.bincount(member * len(levels) + level, minlength=k * len(levels)).reshape(k, -1)
    if k < 2:
        return Estimate(float(np.median(values)))
    below = (drawn(k) @ table).cumsum(1)
    half = below[:, -1:] / 2
    draws = (levels[(below >= half).argmax(1)] + levels[(below > half).argmax(1)]) / 2
    return Estimate(float(np.median(values)), draws, k)


def correlation(a: Numbers, b: Numbers, member: NDArray[np.intp]) -> Estimate:
    """Pearson's correlation of values (n,) and (n,); NaN where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    if not (a.any() and b.any()):
        return Estimate(NAN)
    moments = np.stack([np.bincount(member, x) for x in (np.ones(len(a)), a, b, a * a, b * b, a * b)], 1)

    def of(m: Numbers) -> Numbers:
        n, x, y, xx, yy, xy = m.T
        spread = (xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2)
        return np.asarray((xy / n - x * y / n**2) / np.sqrt(np.where(spread > 0, spread, np.nan)))

    value, k = float(of(moments.sum(0)[None])[0]), len(moments)
    return Estimate(value, of(drawn(k).astype(np.float64) @ moments), k) if k > 1 else Estimate(value)


def auc(inside: Numbers, outside: Numbers, labels: tuple[Numbers, Numbers]) -> Estimate:
    """Probability that a score inside (n,) is above one outside (m,), ties half; .5 is chance.

    labels: of both sides, (n,) and (m,). A label inside is drawn with what bears it outside; other labels outside are drawn by
    themselves.
    """
    side = members(np.concatenate(labels))
    inner, outer = side[: len(inside)], side[len(inside) :]
    names, inner = np.unique(inner, return_inverse=True)
    others, other = np.unique(outer, return_inverse=True)
    won = (inside[:, None] > outside) + (inside[:, None] == outside) / 2
    cell = inner[:, None] * len(others) + other
    table = np.bincount(cell.ravel(), won.ravel(), len(names) * len(others)).reshape(len(names), -1)
    n, m = (_counted(x) for x in (inner, other))
    value, query = float(table.sum() / n.sum() / m.sum()), 1 / min(len(inside), len(outside))
    if len(names) < 2:
        return Estimate(value, query=query)
    w = drawn(len(names)).astype(np.float64)
    v = np.zeros((DRAWS, len(others)))
    shared, alone = np.isin(others, names), np.flatnonzero(~np.isin(others, names))
    v[:, shared] = w[:, np.searchsorted(names, others[shared])]
    if len(alone):
        v[:, alone] = drawn(len(alone), seed=2)
    pairs = (w @ n) * (v @ m)
    draws = ((w @ table) * v).sum(1) / np.where(pairs > 0, pairs, np.nan)
    return Estimate(value, draws, len(names), query)


def kolmogorov_smirnov(a: Numbers, b: Numbers) -> float:
    """Largest distance of the two empirical distribution functions, 0 to 1."""
    grid = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())
