"""Forgotten like retraining? Kept like retraining? Stays so? Each answer with its number, interval, noise and reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ease_flwr.audit import examination
from ease_flwr.audit.intervals import NORMAL, Measure, possible
from ease_flwr.config import AuditConfig


@dataclass(frozen=True)
class Row:
    """One line of the verdict. gap: model minus reference.  answer: in words, never a bare "passed".

    low, high: NaN where there is no interval.  noise, cells: s of the number, and from how many cells; NaN where it is unknown.
    """

    question: str
    what: str
    model: str
    against: str
    value: float
    reference: float
    gap: float
    low: float
    high: float
    threshold: float
    noise: float
    cells: int
    answer: str


@dataclass(frozen=True)
class Beside:
    """Numbers of a model beside those of a reference."""

    model: str
    against: Sequence[str]
    """Names of the reference's models: their mean is meant."""
    numbers: Mapping[str, Measure]


GOOD = ("like retraining", "kept", "like strangers", "like strangers, even less known")
"""Answers that say there is nothing to mend."""
FORGOTTEN, KEPT, STAYS = "forgotten like retraining?", "kept like retraining?", "stays so?"
UNKNOWN, AS_BEFORE, STILL = "like what nobody trained on?", "kept as before forgetting?", "still like what nobody trained on?"
"""What is asked where no retrained model is there, see strangers.py."""
ONE_SIDED = ("r1.retain", "r1.neighbours", "r1.test")
"""Numbers of which only less than the reference's is worse."""
NAMES = {"relearning": "relearning", "cross_modal": "cross-modal probes", "linear_probe": "linear probe"}
"""Probes of a full audit, in words."""


def verdict(found: Sequence[Beside], limits: AuditConfig, level: str) -> list[Row]:
    """Rows for *unlearned* beside *retrain*, for what it keeps beside *retrain_equal* too, and for *continued* beside its own
    reference."""
    rows = []
    for question in (FORGOTTEN, KEPT, STAYS):
        for beside in (b for b in found if (b.model == "continued") == (question == STAYS)):
            asked: dict[str, float] = {}
            if question != KEPT and "retrain_equal" not in beside.against:
                asked |= forgetting(limits)
            if question != FORGOTTEN:
                asked |= {"r1.forget_shared": limits.recall, **dict.fromkeys(ONE_SIDED, limits.retained)}
            for key in (k for k in asked if k in beside.numbers):
                rows.append(row((question, key), beside, asked[key], key not in ONE_SIDED, level))
    return rows


def as_before(beside: Beside, limits: AuditConfig) -> list[Row]:
    """Rows for what a model keeps, beside *original*: where nobody has retrained, that is what there was."""
    keys = [key for key in ONE_SIDED if key in beside.numbers]
    return [row((AS_BEFORE, key), beside, limits.retained, two_sided=False) for key in keys]


def forgetting(limits: AuditConfig) -> dict[str, float]:
    """What must be like retraining's, neither above nor below, and how near."""
    recall = {f"r1.{s}": limits.recall for s in ("forget_exclusive", "forget", "forget_unseen")}
    attacks = {f"membership.{a}": limits.auc for a in ("cosine", "changed", "logistic")}
    later = {"probe": limits.auc, "relearn.1": limits.relearn, "relearn.5": limits.relearn, "relearn.15": limits.relearn}
    return {
        **recall,
        "distance.forget": limits.distance,
        "people.forget_exclusive": limits.people,
        **attacks,
        "backdoor": limits.recall,
        **later,
        **{f"cross.{t}": limits.relearn for t in ("visual", "text")},
    }


def row(asked: tuple[str, str], beside: Beside, limit: float, two_sided: bool, level: str = "full") -> Row:
    """The answer for one number. asked: question and number. Without an interval no answer is sure."""
    question, key = asked
    found = possible(key, beside.numbers[key])
    gap, low, high = found.gap, found.gap_low, found.gap_high
    if key.startswith("distance"):  # a distance has no side: it is its own gap
        gap, low, high = found.value, found.low, found.high
    more, less = _sides(question, key, two_sided)
    if low > limit and two_sided:
        answer = more
    elif high < -limit:
        answer = less
    elif low >= -limit and (high <= limit or not two_sided):
        answer = "like retraining" if two_sided else "kept"
    else:
        doubts = [(more, gap > 0)] if two_sided and not high <= limit else []
        doubts += [(less, gap < 0)] if less and not low >= -limit else []
        likely = [what for what, so in doubts if so]
        doubt = f"perhaps {likely[0]}" if likely else f"that it is {' or '.join(what for what, _ in doubts)} cannot be excluded"
        more_of = _remedy(found, gap, (low, high), beside)
        more_of += ", or a full audit" if level == "quick" and question != KEPT else ""
        answer = f"not sure: {doubt}; {more_of} would tell"
    names = " and ".join(beside.against)
    numbers = found.value, found.value - gap, gap, low, high, limit, found.noise
    return Row(question, key, beside.model, names, *numbers, found.cells, answer)


def _sides(question: str, key: str, two_sided: bool) -> tuple[str, str]:
    """Words for a number beyond its limit, above and below."""
    if key == "r1.forget_shared":
        return "above", "lost, though others know it"
    if key.startswith("distance"):
        return "other than retraining", ""
    if key.startswith("people"):
        return "too little forgotten of one", "too much forgotten of one"
    return ("too little forgotten", "too much forgotten") if question != KEPT and two_sided else ("above", "lost")


def _remedy(found: Measure, gap: float, ends: tuple[float, float], beside: Beside) -> str:
    """What would make an answer sure: where the interval is as wide as the noise and no wider, another training."""
    width = max(gap - ends[0], ends[1] - gap)
    if np.isnan(found.noise) or not width <= NORMAL * found.noise + 1e-9:
        return "more members or pairs"
    return "a second retraining" if len(beside.against) == 1 else "more retrainings"


def asked_of(level: str, source: str, alone: bool = False) -> str:
    """What stands in the headline of every block: how much was asked, and what is known of the noise, or that there is no
    reference."""
    missing = unasked(level, alone)
    source = "no reference" if alone else source
    return f"{level} audit; " + (f"not asked: {missing}; " if missing else "") + source


def unasked(level: Any, alone: bool = False) -> str:
    """Probes that an audit leaves out, in words. alone: whether no retrained model is there."""
    return ", ".join(words for probe, words in NAMES.items() if probe not in examination.asked(level, alone))


def headline(question: str, rows: Sequence[Row], asked: str) -> str:
    """How many answers of a block are good."""
    good = sum(r.answer in GOOD for r in rows)
    return f"{question[0].upper()}{question[1:]} {good} of {len(rows)} answers say so ({asked})"


HEAD = """Differences are model minus reference, with their interval of 95 %. A ! marks what is beyond its limit and worse.
s is the noise of one training, with the number of cells that it is known from."""


def table(rows: list[Row], asked: str) -> str:
    """Markdown, a block a question."""
    lines = [HEAD]
    for question in dict.fromkeys(r.question for r in rows):
        chosen = [r for r in rows if r.question == question]
        lines += ["", f"### {headline(question, chosen, asked)}", ""]
        lines += [
            "| number | model | value | reference | difference (95 %) | s (cells) | limit | answer |",
            "|---|---|---:|---:|---:|---:|---:|---|",
        ]
        for r in chosen:
            value, reference, difference, noise = shown(r)
            beside = f"{reference} ({r.against})"
            lines.append(
                f"| {r.what} | {r.model} | {value} | {beside} | {difference} | {noise} | {r.threshold:g} | {r.answer} |"
            )
    return "\n".join(lines) + "\n"


def shown(r: Row) -> tuple[str, str, str, str]:
    """Value, reference, difference with interval and mark, and s of a line, as every page shows them."""
    n = digits(r.value, r.reference, r.threshold)
    interval = "no interval" if np.isnan(r.low) else f"{r.low:+.{n}f} to {r.high:+.{n}f}"
    mark = " !" if worse(r) else ""
    noise = "-" if np.isnan(r.noise) else f"{r.noise:.{n}f} ({r.cells})"
    return f"{r.value:.{n}f}", f"{r.reference:.{n}f}", f"{r.gap:+.{n}f}{mark} ({interval})", noise


def worse(r: Row) -> bool:
    """Whether a difference is beyond the limit on the side that is worse: either side, or below for what is kept, or above
    beside strangers."""
    above = r.gap > r.threshold and r.what not in ONE_SIDED
    return above or (r.gap < -r.threshold and r.question not in (UNKNOWN, STILL))


def digits(*values: float) -> int:
    """Digits after the point: one for percents and ranks, three for what lies between 0 and 1."""
    return 1 if max(abs(v) for v in values) > 1.5 else 3


def plain(rows: list[Row]) -> list[dict[str, float | str | None]]:
    """For JSON, which knows no NaN."""
    return [{k: None if v != v else v for k, v in asdict(r).items()} for r in rows]


def read_rows(rows: Sequence[Mapping[str, float | str | None]]) -> list[Row]:
    """Inverse of `plain`."""
    return [Row(**{k: float("nan") if v is None else v for k, v in r.items()}) for r in rows]  # type: ignore[arg-type]
