"""One exchange in which every client answers every question under every model, and the numbers made of it.

All numbers stand beside those of the retrained model, with bootstrap intervals over queries or pairs. What each asks and cannot
show is in docs/audit.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clients.audit import FEATURES, FORGET_SETS, STEPS
from ease_flwr.config import Union
from ease_flwr.exchange import evaluation
from ease_flwr.exchange.answers import Examination, ExaminedSet
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.judgement import KS, SETS
from ease_flwr.exchange.messages import Audit

Numbers = NDArray[np.float64]
Level = Literal["quick", "full"]
PROBES: dict[str, tuple[str, ...]] = {"quick": ("membership", "alignment")}
PROBES["full"] = (*PROBES["quick"], "linear_probe", "relearning", "cross_modal")
DRAWS = 1000
"""Bootstrap samples."""


@dataclass
class Answers:
    """What all clients said about one model, put together in order of their names. See exchange/answers.py: Examination."""

    ranks: dict[str, tuple[Numbers, Numbers]] = field(default_factory=dict)
    similarity: dict[str, Numbers] = field(default_factory=dict)
    labels: dict[str, Numbers] = field(default_factory=dict)
    member: Numbers = field(default_factory=lambda: np.zeros((0, len(FEATURES))))
    stranger: Numbers = field(default_factory=lambda: np.zeros((0, len(FEATURES))))
    relearn: Numbers = field(default_factory=lambda: np.zeros(0))
    cross: dict[str, Numbers] = field(default_factory=dict)
    probe: Numbers = field(default_factory=lambda: np.zeros(0))
    cka: dict[str, Numbers] = field(default_factory=dict)
    backdoor: Numbers = field(default_factory=lambda: np.zeros(0))


def examine(
    federation: Federation, models: Mapping[str, NDArray[np.float32]], forget: Union, level: Level, split: Any = "test"
) -> dict[str, Answers]:
    """Ask every client; answers by model."""
    question = Audit(forget=forget, split=split, probes=PROBES[level], train=federation.experiment.learn)
    said, _ = evaluation.examine(federation, models, question)
    return {name: together(list(by_client.values())) for name, by_client in said.items()}


def together(said: Sequence[Examination]) -> Answers:
    """All clients' answers about one model. "forget" is the union of its two parts where they exist."""
    sets: dict[str, list[ExaminedSet]] = {}
    for answer in said:
        for kind, found in answer.sets.items():
            sets.setdefault(kind, []).append(found)
    parts = [s for s in ("forget_exclusive", "forget_shared") if s in sets]
    if parts:
        sets["forget"] = [found for part in parts for found in sets[part]]
    out = Answers()
    for name in (s for s in SETS if s in sets):
        of = {key: _joined([getattr(s, key) for s in sets[name]]) for key in ("i2t", "t2i", "similarity", "labels")}
        out.ranks[name] = of["i2t"], of["t2i"]
        out.similarity[name], out.labels[name] = of["similarity"], of["labels"]
    if members := [a for a in said if a.member]:
        both = (_joined([getattr(a, key) for a in members]) for key in ("member", "stranger"))
        out.member, out.stranger = (rows.reshape(-1, len(FEATURES)) for rows in both)
    if relearnt := [a.relearn for a in said if a.relearn]:
        out.relearn = np.sum(np.array(relearnt, dtype=np.float64), axis=0)
    if marked := [a.backdoor for a in said if a.backdoor]:
        out.backdoor = np.sum(np.array(marked, dtype=np.float64), axis=0)
    for tower in ("visual", "text"):
        if crossed := [a.cross[tower] for a in said if tower in a.cross]:
            out.cross[tower] = np.sum(np.array(crossed, dtype=np.float64), axis=0)
    out.probe = np.array([a.probe for a in said if a.probe is not None])
    for pairs in ("forget", "public"):
        if aligned := [a.cka[pairs] for a in said if pairs in a.cka]:
            out.cka[pairs] = np.mean(np.array(aligned), axis=0)
    return out


def _joined(rows: Sequence[Sequence[Any]]) -> Numbers:
    return np.concatenate([np.asarray(r, dtype=np.float64) for r in rows])


# ---- numbers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A number of one model, and how far it lies above the reference's, with 95 % intervals. NaN where it does not apply."""

    value: float
    low: float = float("nan")
    high: float = float("nan")
    gap: float = float("nan")
    gap_low: float = float("nan")
    gap_high: float = float("nan")


def measure(values: Numbers, reference: Numbers | None = None) -> Measure:
    """Mean of values (n,), and its distance from the reference's on the same pairs; bootstrap over pairs."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    out = Measure(float(values.mean()), float(low), float(high))
    if reference is None:
        return out
    difference = values - reference
    gap_low, gap_high = np.percentile(difference[draws].mean(1), [2.5, 97.5])
    return Measure(out.value, out.low, out.high, float(difference.mean()), float(gap_low), float(gap_high))


def auc(members: Numbers, strangers: Numbers) -> float:
    """Probability that a member scores above a stranger, ties half; .5 is chance."""
    both = np.concatenate([members, strangers])
    order = both.argsort(kind="stable")
    rank = np.empty(len(both))
    rank[order] = np.arange(1, len(both) + 1)
    values, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    rank = (np.bincount(inverse, rank) / counts)[inverse] if len(values) < len(both) else rank
    n = len(members)
    return float((rank[:n].sum() - n * (n + 1) / 2) / (n * len(strangers)))


def auc_measure(members: Numbers, strangers: Numbers, reference: tuple[Numbers, Numbers]) -> Measure:
    """AUC of scores (n,) and (m,), and its distance from the reference's on the same pairs; bootstrap over both kinds."""
    rng = np.random.default_rng(0)
    own, gaps = [], []
    for _ in range(DRAWS // 5):
        i, j = rng.integers(len(members), size=len(members)), rng.integers(len(strangers), size=len(strangers))
        own.append(auc(members[i], strangers[j]))
        gaps.append(own[-1] - auc(reference[0][i], reference[1][j]))
    value = auc(members, strangers)
    ends = [float(x) for draws in (own, gaps) for x in np.percentile(draws, [2.5, 97.5])]
    return Measure(value, ends[0], ends[1], value - auc(*reference), ends[2], ends[3])


def share_measure(hits: float, of: float, reference: float) -> Measure:
    """A share of hits in percent, and its distance from the reference's share of as many; normal approximation."""
    p, q = hits / of, reference / of
    error = 196 * (p * (1 - p) / of) ** 0.5
    both = 196 * (p * (1 - p) / of + q * (1 - q) / of) ** 0.5
    gap = 100 * (p - q)
    return Measure(100 * p, max(0.0, 100 * p - error), min(100.0, 100 * p + error), gap, gap - both, gap + both)


def attack(features: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers] | None:
    """Cross-validated scores of a logistic regression on the features of members (n, k) and strangers (m, k).

    None where scikit-learn is not installed, or there are too few of either.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        return None
    members, strangers = features
    if min(len(members), len(strangers)) < 8:
        return None
    x, y = np.concatenate([members, strangers]), np.repeat([1, 0], [len(members), len(strangers)])
    folds = StratifiedKFold(4, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    score = cross_val_predict(model, x, y, cv=folds, method="decision_function")
    return score[: len(members)], score[len(members) :]


def kolmogorov_smirnov(a: Numbers, b: Numbers) -> float:
    """Largest distance of the two empirical distribution functions, 0 to 1."""
    grid = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def hits(ranks: tuple[Numbers, Numbers], k: int) -> Numbers:
    """Percent per image, the mean of both directions, where all have as many captions; else of all queries, weighted so that
    their mean is the mean of both directions."""
    i2t, t2i = (100.0 * (r <= k) for r in ranks)
    out: Numbers
    if len(t2i) % len(i2t) == 0:
        out = (i2t + t2i.reshape(len(i2t), -1).mean(1)) / 2
    else:
        out = np.concatenate([i2t / len(i2t), t2i / len(t2i)]) * (len(i2t) + len(t2i)) / 2
    return out


def numbers(answers: Answers, reference: Answers) -> dict[str, Measure]:
    """Everything of one model, beside the retrained one (which may be itself):

    r1.SET, r5.SET, r10.SET, median_rank.SET, similarity.SET    recall both ways in percent, ranks, cosine of pairs
    distance.SET, correlation.SET, ks.SET                       of the similarities of single pairs to the reference's
    people.SET                                                  R@1 of whom the two differ most for
    wording.SET                                                 spread of R@1 over the wordings of one thing
    backdoor                                                    percent of marked pictures for which the mark decides
    membership.cosine, membership.changed, membership.logistic  AUC of attacks
    probe, cka.SET.TOWER                                        of embeddings
    relearn.STEPS, relearn.area, cross.TOWER                    R@1 after learning again; area: mean gap of the curve
    """
    out: dict[str, Measure] = {}
    for name, ranks in answers.ranks.items():
        theirs = reference.ranks[name]
        for k in KS:
            out[f"r{k}.{name}"] = measure(hits(ranks, k), hits(theirs, k))
        median, their_median = (float(np.median(np.concatenate(r))) for r in (ranks, theirs))
        out[f"median_rank.{name}"] = Measure(median, gap=median - their_median)
        s, r = answers.similarity[name], reference.similarity[name]
        if name in (*FORGET_SETS, "retain"):
            out[f"distance.{name}"] = measure(np.abs(s - r))
            out[f"correlation.{name}"] = Measure(_correlation(s, r))
            out[f"ks.{name}"] = Measure(kolmogorov_smirnov(s, r))
        out[f"similarity.{name}"] = measure(s, r)
        if (ours_spread := wordings(ranks[1], answers.labels[name])) is not None:
            out[f"wording.{name}"] = measure(ours_spread, wordings(theirs[1], answers.labels[name]))
        if name in FORGET_SETS:
            out[f"people.{name}"] = _worst(answers.labels[name], ranks[0] <= 1, theirs[0] <= 1)
    out |= _membership(answers, reference)
    if answers.backdoor.size:
        of, found = answers.backdoor
        out["backdoor"] = share_measure(found, of, reference.backdoor[1])
    if len(answers.probe):
        out["probe"] = Measure(float(answers.probe.mean()), gap=float((answers.probe - reference.probe).mean()))
    for name, values in answers.cka.items():
        out |= {f"cka.{name}.{t}": Measure(float(v)) for t, v in zip(("visual", "text"), values, strict=True)}
    if answers.relearn.size:
        of, *curve = answers.relearn
        for steps, hit, there in zip((0, *STEPS), curve, reference.relearn[1:], strict=True):
            out[f"relearn.{steps}"] = share_measure(hit, of, there)
        out["relearn.area"] = Measure(float(np.mean([out[f"relearn.{s}"].gap for s in STEPS])))
    for tower, (of, hit) in answers.cross.items():
        out[f"cross.{tower}"] = share_measure(hit, of, reference.cross[tower][1])
    return out


def _membership(answers: Answers, reference: Answers) -> dict[str, Measure]:
    if not len(answers.member) or not len(answers.stranger):
        return {}
    both = [(a.member, a.stranger) for a in (answers, reference)]
    asked = {"cosine": [(m[:, 0], s[:, 0]) for m, s in both], "changed": [(m[:, 2], s[:, 2]) for m, s in both]}
    logistic = [found for features in both if (found := attack(features))]
    if len(logistic) == len(both):
        asked["logistic"] = logistic
    return {f"membership.{name}": auc_measure(*own, theirs) for name, (own, theirs) in asked.items()}


def wordings(ranks: Numbers, labels: Numbers) -> Numbers | None:
    """Standard deviation of R@1 in percent over the text queries about one thing: the captions of a picture where it has
    several, else all queries of a label. ranks: (m,) of text queries; labels: (n,) of pictures. None where nothing is said
    twice."""
    found = 100.0 * (ranks <= 1)
    if len(ranks) > len(labels):
        even = len(ranks) % len(labels) == 0
        return found.reshape(len(labels), -1).std(1) if even else None
    spreads = [found[labels == label].std() for label in np.unique(labels[labels >= 0]) if (labels == label).sum() > 1]
    return np.array(spreads) if spreads else None


def _worst(labels: Numbers, ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Measure:
    """R@1 (image to text) of whom the two models differ most for."""
    people = [labels == who for who in np.unique(labels)]
    shares = [share_measure(ours[p].sum(), p.sum(), theirs[p].sum()) for p in people]
    return max(shares, key=lambda share: abs(share.gap))


def _correlation(a: Numbers, b: Numbers) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


def scores(answers: Answers, most: int = 400) -> dict[str, list[float]]:
    """What a report draws: similarities of sets (at most so many, evenly chosen) and cosines of members and strangers."""
    out = {
        f"similarity.{s}": v[:: max(1, len(v) // most)] for s, v in answers.similarity.items() if s in (*FORGET_SETS, "retain")
    }
    out |= {"member": answers.member[:, 0], "stranger": answers.stranger[:, 0], "member_partner_loss": answers.member[:, 1]}
    return {key: values.round(4).tolist() for key, values in out.items()}


def plain(measures: Mapping[str, Measure]) -> dict[str, dict[str, float]]:
    """For JSON, without what does not apply."""
    fields: Sequence[str] = ("value", "low", "high", "gap", "gap_low", "gap_high")
    return {k: {f: round(v, 6) for f in fields if not np.isnan(v := getattr(m, f))} for k, m in measures.items()}
