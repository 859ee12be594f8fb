"""Forgotten like retraining? Kept like retraining? Stays so? Each answer with its number, interval and reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from ease_flwr.audit.examination import Measure
from ease_flwr.config import AuditConfig


@dataclass(frozen=True)
class Row:
    """One line of the verdict. gap: model minus reference.  answer: in words, never a bare "passed"."""

    question: str
    what: str
    model: str
    value: float
    reference: float
    gap: float
    low: float
    high: float
    threshold: float
    answer: str


GOOD = ("like retraining", "kept")
"""Answers that say there is nothing to mend."""
FORGOTTEN, KEPT, STAYS = "forgotten like retraining?", "kept like retraining?", "stays so?"


def verdict(numbers: Mapping[str, Mapping[str, Measure]], limits: AuditConfig) -> list[Row]:
    """Rows for *unlearned* against *retrain*, and for *continued* against *retrain_continued* where there are both."""
    rows = []
    for model, reference, later in (("unlearned", "retrain", False), ("continued", "retrain_continued", True)):
        if model not in numbers or reference not in numbers:
            continue
        ours, theirs = numbers[model], numbers[reference]
        for key, limit in forgetting(limits).items():
            if key in ours and key in theirs:
                rows.append(row(STAYS if later else FORGOTTEN, key, model, ours[key], limit, two_sided=True))
        for name in ("forget_shared", "retain", "neighbours", "test"):
            key = f"r1.{name}"
            if key in ours:
                limit, shared = limits.recall if name == "forget_shared" else limits.retained, name == "forget_shared"
                rows.append(row(STAYS if later else KEPT, key, model, ours[key], limit, two_sided=shared))
    return rows


def forgetting(limits: AuditConfig) -> dict[str, float]:
    """What must be like retraining's, neither above nor below, and how near."""
    recall = {f"r1.{s}": limits.recall for s in ("forget_exclusive", "forget", "forget_unseen")}
    mark = {"backdoor": limits.recall}
    people = {f"people.{s}": limits.people for s in ("forget_exclusive",)}
    attacks = {f"membership.{a}": limits.auc for a in ("cosine", "changed", "logistic")}
    later = {"probe": limits.auc, "relearn.1": limits.relearn, "relearn.5": limits.relearn, "relearn.15": limits.relearn}
    return {
        **recall,
        "distance.forget": limits.distance,
        **people,
        **attacks,
        **mark,
        **later,
        **{f"cross.{t}": limits.relearn for t in ("visual", "text")},
    }


def row(question: str, key: str, model: str, found: Measure, limit: float, two_sided: bool) -> Row:
    """The answer for one number. Without an interval the gap itself stands for both of its ends."""
    if key.startswith("distance"):  # a distance has no side: it is its own gap
        gap, low, high = found.value, found.low, found.high
    else:
        gap = found.gap
        low, high = (gap if np.isnan(x) else x for x in (found.gap_low, found.gap_high))
    more, less = ("too little forgotten", "too much forgotten") if question != KEPT and two_sided else ("above", "lost")
    if key == "r1.forget_shared":
        more, less = "above", "lost: others know it too"
    if key.startswith("distance"):
        more, less = "other than retraining", ""
    if key.startswith("people"):
        more, less = "one is too little forgotten", "one is too much forgotten"
    if low > limit and two_sided:
        answer = more
    elif high < -limit:
        answer = less
    elif low >= -limit and (high <= limit or not two_sided):
        answer = "like retraining" if two_sided else "kept"
    else:
        answer = f"not sure: {'perhaps ' + more if high > limit and two_sided else 'perhaps ' + less}"
    return Row(question, key, model, found.value, found.value - gap, gap, low, high, limit, answer)


def table(rows: list[Row]) -> str:
    """Markdown, a block a question."""
    lines = []
    for question in dict.fromkeys(r.question for r in rows):
        chosen = [r for r in rows if r.question == question]
        good = sum(r.answer in GOOD for r in chosen)
        lines += ["", f"### {question[0].upper()}{question[1:]} {good} of {len(chosen)} answers say so", ""]
        lines += [
            "| number | model | value | reference | difference (95 %) | limit | answer |",
            "|---|---|---:|---:|---:|---:|---|",
        ]
        for r in chosen:
            n = digits(r.value, r.reference, r.threshold)
            v, ref, g, lo, hi = (f"{x:.{n}f}" for x in (r.value, r.reference, r.gap, r.low, r.high))
            lines.append(f"| {r.what} | {r.model} | {v} | {ref} | {g} ({lo} to {hi}) | {r.threshold:g} | {r.answer} |")
    return "\n".join(lines).lstrip("\n") + "\n"


def digits(*values: float) -> int:
    """Digits after the point: one for percents and ranks, three for what lies between 0 and 1."""
    return 1 if max(abs(v) for v in values) > 1.5 else 3


def plain(rows: list[Row]) -> list[dict[str, float | str]]:
    """For JSON."""
    return [asdict(r) for r in rows]
