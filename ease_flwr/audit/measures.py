"""The numbers of an audit: each of one model, beside the mean of its references, with intervals over members (intervals.py).

What each asks and cannot show is in docs/audit.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from ease_flwr.audit import intervals
from ease_flwr.audit.examination import Answers, Probed
from ease_flwr.audit.intervals import Estimate, Measure, Numbers, compared, members
from ease_flwr.clients.audit import FORGET_SETS
from ease_flwr.exchange.examined import STEPS
from ease_flwr.exchange.judgement import KS, PARTS


def estimates(answers: Answers) -> dict[str, Estimate]:
    """Every number that one model has by itself:

    r1.SET, r5.SET, r10.SET, median_rank.SET, similarity.SET    recall both ways in percent, ranks, cosine of pairs
    wording.SET                                                 spread of R@1 over the wordings of one thing
    backdoor                                                    percent of marked pictures for which the mark decides
    membership.cosine, membership.changed, membership.logistic  AUC of attacks
    probe, cka.SET.TOWER                                        of embeddings
    relearn.STEPS, cross.TOWER                                  R@1 after learning again
    swap.TOWER, swap.TOWER.PART                                 R@1 of this tower with the other of the retrained model, of
                                                                all that is asked or of a part of it (judgement.py: PARTS)
    """
    out: dict[str, Estimate] = {}
    for name, found in answers.sets.items():
        member = members(found["labels"])
        both = member, member.repeat(found["captions"].astype(int))
        for k in KS:
            out[f"r{k}.{name}"] = intervals.share_of([found["i2t"] <= k, found["t2i"] <= k], both)
        out[f"median_rank.{name}"] = intervals.median(np.concatenate([found["i2t"], found["t2i"]]), np.concatenate(both))
        out[f"similarity.{name}"] = intervals.mean(found["similarity"], member)
        if (spread := wordings(found)) is not None:
            out[f"wording.{name}"] = intervals.mean(*spread)
    out |= _attacks(answers)
    if answers.backdoor.size:
        out["backdoor"] = intervals.share_of([answers.backdoor], [np.arange(len(answers.backdoor))])
    if answers.probe:
        out["probe"] = intervals.auc(*answers.probe, answers.probe_sides)
    for name, values in answers.cka.items():
        out |= {f"cka.{name}.{t}": Estimate(float(v)) for t, v in zip(("visual", "text"), values, strict=True)}
    if answers.relearn:
        for i, steps in enumerate((0, *STEPS)):
            out[f"relearn.{steps}"] = _probed(answers.relearn, i)
    for tower, probed in answers.swap.items():
        out[f"swap.{tower}"] = _probed(probed, 0)
        for part in (p for p in PARTS if p in answers.sets):
            if len((of_part := probed.about(answers.sets[part]["labels"])).labels):
                out[f"swap.{tower}.{part}"] = _probed(of_part, 0)
    return out | {f"cross.{tower}": _probed(probed, 0) for tower, probed in answers.cross.items()}


def numbers(
    answers: Answers, own: Mapping[str, Estimate], references: Sequence[tuple[Answers, Mapping[str, Estimate]]]
) -> dict[str, Measure]:
    """Every number of one model beside the mean of these references (one may be itself, there may be none). Beside those of
    `estimates`, what two models have together:

    distance.SET, correlation.SET, ks.SET                       of the similarities of single pairs to the reference's
    people.SET                                                  R@1 of whom the two differ most for
    relearn.area                                                mean gap of the curve of relearning
    """
    out = {key: compared(e, [theirs[key] for _, theirs in references if key in theirs]) for key, e in own.items()}
    if not references:
        return out
    for name in (s for s in (*FORGET_SETS, "retain") if s in answers.sets):
        found, theirs = answers.sets[name], [a.sets[name] for a, _ in references]
        s, member = found["similarity"], members(found["labels"])
        distances = np.mean([np.abs(s - r["similarity"]) for r in theirs], axis=0)
        out[f"distance.{name}"] = compared(intervals.mean(distances, member))
        agreement = [intervals.correlation(s, r["similarity"], member) for r in theirs]
        if not np.isnan([e.value for e in agreement]).any():
            out[f"correlation.{name}"] = compared(intervals.averaged(agreement))
        out[f"ks.{name}"] = Measure(float(np.mean([intervals.kolmogorov_smirnov(s, r["similarity"]) for r in theirs])))
        if name in FORGET_SETS and (worst := _worst(found, theirs)):
            out[f"people.{name}"] = worst
    if answers.relearn:
        curves = [intervals.averaged([e[f"relearn.{s}"] for s in STEPS]) for e in (own, *(of for _, of in references))]
        area = compared(curves[0], curves[1:])
        out["relearn.area"] = Measure(area.gap, area.gap_low, area.gap_high, area.gap, area.gap_low, area.gap_high)
    return out


def _probed(found: Probed, stop: int) -> Estimate:
    """Recall of a probe after so many stops; clients that have pairs of one label judge one member together."""
    member = members(found.labels)
    of, hits = np.zeros((member.max() + 1, 2)), np.zeros((len(found.hits), member.max() + 1, 2))
    np.add.at(of, member, found.of)
    for order, there in zip(hits, found.hits[:, stop], strict=True):
        np.add.at(order, member, there)
    return intervals.shares_of_batches(hits, of)


def _attacks(answers: Answers) -> dict[str, Estimate]:
    if not len(answers.member) or not len(answers.stranger):
        return {}
    member, stranger = answers.member, answers.stranger
    asked = {"cosine": (member[:, 0], stranger[:, 0]), "changed": (member[:, 2], stranger[:, 2])}
    if logistic := attack((member, stranger)):
        asked["logistic"] = logistic
    return {f"membership.{name}": intervals.auc(*both, answers.sides) for name, both in asked.items()}


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


def wordings(found: Mapping[str, Numbers]) -> tuple[Numbers, NDArray[np.intp]] | None:
    """Standard deviation of R@1 in percent over the text queries about one thing, with the member of each: the captions of a
    picture where pictures have several, else all queries of a label. None where nothing is said twice."""
    labels, captions = found["labels"], found["captions"].astype(int)
    hit, first = 100.0 * (found["t2i"] <= 1), np.append(0, captions.cumsum())
    if (captions > 1).any():
        several = np.flatnonzero(captions > 1)
        return np.array([hit[first[i] : first[i + 1]].std() for i in several]), members(labels[several])
    spreads = [hit[labels == label].std() for label in np.unique(labels[labels >= 0]) if (labels == label).sum() > 1]
    return (np.array(spreads), np.arange(len(spreads))) if spreads else None


def _worst(found: Mapping[str, Numbers], theirs: Sequence[Mapping[str, Numbers]]) -> Measure | None:
    """R@1 of the label that the models differ most for; its pictures are what is drawn. None where nothing has a label."""
    owner = np.arange(len(found["labels"])).repeat(found["captions"].astype(int))

    def recall(of: Mapping[str, Numbers], who: float) -> Estimate:
        chosen = found["labels"] == who
        place = np.cumsum(chosen) - 1
        both = place[chosen], place[owner[chosen[owner]]]
        return intervals.share_of([of["i2t"][chosen] <= 1, of["t2i"][chosen[owner]] <= 1], both)

    labels = np.unique(found["labels"][found["labels"] >= 0])
    people = [compared(recall(found, who), [recall(of, who) for of in theirs]) for who in labels]
    return max(people, key=lambda share: abs(share.gap), default=None)


def plain(measures: Mapping[str, Measure]) -> dict[str, dict[str, float]]:
    """For JSON, without what does not apply; an interval ends where there is nothing beyond."""
    out = {}
    for key, m in measures.items():
        found = {f: round(v, 6) for f, v in asdict(intervals.possible(key, m)).items() if not np.isnan(v)}
        out[key] = {f: v for f, v in found.items() if f != "cells" or v}
    return out
