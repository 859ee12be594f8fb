"""What probes of an audit are made of: pairs they look at, hits by member, classifiers and alignment of embeddings."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ease_flwr.data.pairs import EvaluationSet, Gallery, Pairs
from ease_flwr.exchange.examined import MOST, MemberHits

if TYPE_CHECKING:
    from torch import Tensor

ENOUGH = 10
"""Pictures of each label on which relearning is judged, at least: gallery groups are taken until there are so many."""


def numbered(pairs: Pairs, which: NDArray[np.intp] | None = None) -> tuple[float, ...]:
    """The labels of these pairs, or of those at these positions, as numbers."""
    return tuple(_number(pairs.labels[i]) for i in (range(len(pairs)) if which is None else which))


def captions_of(chosen: EvaluationSet) -> NDArray[np.int64]:
    """How many captions each image query has, (n,)."""
    return np.array([len(chosen.gallery.pairs.captions[i]) for i in chosen.query])


def by_member(chosen: EvaluationSet, hits: NDArray[np.int64]) -> list[MemberHits]:
    """Hits (orders of batches, stops, n, 2) of single pairs added up by label; a pair without a label stays by itself."""
    labels = np.array(numbered(chosen.gallery.pairs, chosen.query))
    known = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
    of = np.stack([np.ones(len(labels), np.int64), captions_of(chosen)], 1)
    return [
        MemberHits(label=labels[who[0]], of=tuple(of[who].sum(0).tolist()), hits=_tuples(hits[:, :, who].sum(2)))
        for who in (*known, *np.flatnonzero(labels < 0)[:, None])
    ]


def _tuples(hits: NDArray[np.int64]) -> tuple[Any, ...]:
    return tuple(tuple(tuple(two) for two in by_stop) for by_stop in hits.tolist())


@lru_cache(maxsize=4)
def enough(chosen: EvaluationSet) -> EvaluationSet:
    """The first groups of a gallery that hold ENOUGH pictures of each label, or all that there are; a query among them meets
    the same others as before."""
    group, labels = chosen.gallery.group, chosen.gallery.pairs.about[chosen.query]
    least = {label: int((labels == label).sum()) for label in set(labels.tolist())}
    least = {label: min(ENOUGH, n) if label else n for label, n in least.items()}
    taken: list[int] = []
    for g in np.unique(group[chosen.query]).tolist():
        there = labels[np.isin(group[chosen.query], taken)]
        if all((there == label).sum() >= n for label, n in least.items()):
            break
        taken.append(g)
    rows = np.flatnonzero(np.isin(group, taken))
    if len(rows) == len(group):
        return chosen
    query = np.searchsorted(rows, chosen.query[np.isin(group[chosen.query], taken)])
    return EvaluationSet(Gallery(chosen.gallery.pairs.take(rows), group[rows]), query)


def together(ours: EvaluationSet, strangers: EvaluationSet) -> tuple[EvaluationSet, EvaluationSet]:
    """Both in one gallery: the one that they share, or a new one of at most MOST queries of each and nothing else."""
    if ours.gallery is strangers.gallery:
        return ours, strangers
    chosen = [np.random.default_rng(5).permutation(s.query)[:MOST] for s in (ours, strangers)]
    pairs = [s.gallery.pairs.take(np.sort(query)) for s, query in zip((ours, strangers), chosen, strict=True)]
    both, n = Gallery.single(pairs[0] + pairs[1]), len(pairs[0])
    return EvaluationSet(both, np.arange(n)), EvaluationSet(both, np.arange(n, len(both.pairs)))


def _number(label: str) -> float:
    """A label as a number that tells labels apart and not what they say."""
    return float(int(hashlib.sha256(label.encode()).hexdigest()[:8], 16)) if label else -1.0


@lru_cache(maxsize=8)
def some(pairs: Pairs, seed: int) -> Pairs:
    """At most MOST of them, in random order."""
    return pairs.take(np.random.default_rng(seed).permutation(len(pairs))[:MOST])


@lru_cache(maxsize=8)
def augmented(pairs: Pairs) -> list[Pairs]:
    """The pairs, each with its first caption, with images moved by two pixels each way and a tenth brighter or darker."""
    x = pairs.images.astype(np.float32)
    changed = [np.roll(x, 2, 1), np.roll(x, -2, 1), np.roll(x, 2, 2), np.roll(x, -2, 2), 1.1 * x, 0.9 * x]
    first = tuple(c[:1] for c in pairs.captions)
    return [Pairs(np.clip(c, 0, 255).astype(np.uint8), first, pairs.labels) for c in changed]


def separating(a: Tensor, b: Tensor, folds: int = 4, ridge: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cross-validated scores (n,) and (m,) of a ridge classifier between rows (n, d) and (m, d); the first should be higher."""
    x = torch.cat([a, b]).double()
    y = torch.cat([torch.ones(len(a)), -torch.ones(len(b))]).double()
    order = torch.from_numpy(np.random.default_rng(4).permutation(len(x)))
    score = torch.zeros(len(x), dtype=torch.float64)
    for part in order.chunk(folds):
        rest = torch.ones(len(x), dtype=torch.bool)
        rest[part] = False
        mean = x[rest].mean(0)
        z = x[rest] - mean
        w = torch.linalg.solve(z.T @ z + ridge * torch.eye(x.shape[1], dtype=torch.float64), z.T @ (y[rest] - y[rest].mean()))
        score[part] = (x[part] - mean) @ w
    return score[: len(a)], score[len(a) :]


def linear_cka(a: Tensor, b: Tensor) -> float | None:
    """Linear centred kernel alignment of (n, d) and (n, e), 0 to 1 (Kornblith et al., arXiv 1905.00414, eq. 5); None where the
    rows of one of them are all the same, as one row is."""
    a, b = (x.double() - x.double()[:1] for x in (a, b))
    if not (a.any() and b.any()):
        return None
    a, b = (x - x.mean(0) for x in (a, b))
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))
