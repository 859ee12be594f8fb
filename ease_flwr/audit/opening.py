"""The first screen of a report: one sentence from the rows of the verdict, and three small figures why.

The sentence says no more than the rows do. A fault is what a row is sure of. "Perhaps" is what is beyond its limit, but not
surely. "As far as can be told" is where every number is within its limit, and some rows are not sure of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from ease_flwr.audit import figures
from ease_flwr.audit.drawing import BLUE, MODELS, Drawing, bars, draw, legend
from ease_flwr.audit.retrieval import references_of
from ease_flwr.audit.verdict import (
    AS_BEFORE,
    FORGOTTEN,
    GOOD,
    KEPT,
    ONE_SIDED,
    STAYS,
    STILL,
    UNKNOWN,
    Row,
    digits,
    unasked,
)

UNSURE = "not sure"
HEADS = {
    FORGOTTEN: ("forgotten", "perhaps forgotten"),
    KEPT: ("the rest is kept", "the rest is perhaps kept", "some of the rest is perhaps lost", "some of the rest is lost"),
    STAYS: tuple(f"after going on it is {so}like retraining" for so in ("", "perhaps ", "perhaps not ", "not ")),
    UNKNOWN: ("like strangers", "perhaps like strangers", "perhaps not forgotten", "not forgotten"),
    AS_BEFORE: ("the rest is kept", "the rest is perhaps kept", "some of the rest is perhaps lost", "some of the rest is lost"),
    STILL: tuple(f"after going on it is {so}like strangers" for so in ("", "perhaps ", "perhaps not ", "not ")),
}
ALONE = (UNKNOWN, AS_BEFORE, STILL)
"""Asked where no retrained model is there."""
"""How a part begins: where all rows are good or some are and the others within their limits, where none is sure, where some are
beyond their limits, though not surely, and where they are surely. What is forgotten has two sides, see `_side`."""


@dataclass(frozen=True)
class Part:
    """A part of the sentence: an answer, why, and its tone: a class of the page's style, which colours answers."""

    head: str
    why: str
    tone: str


def sentence(rows: Sequence[Row], level: str) -> list[Part]:
    """Is it forgotten, is the rest kept, does it stay so, and how sure is that? level: of the audit."""
    if not rows:
        return [Part("Whether it is forgotten is not known", "nobody has judged it", "not")]
    by_question = {q: [r for r in rows if r.question == q] for q in HEADS}
    said = [_part(q, found) for q, found in by_question.items() if found]
    alone = any(r.question in ALONE for r in rows)
    if not by_question[UNKNOWN if alone else FORGOTTEN]:
        said.insert(0, Part("whether it is forgotten is not known", "nobody is left who could judge it", "not"))
    sure = sum(not r.answer.startswith(UNSURE) for r in rows)
    if alone:
        said.append(Part("whether it is as if it had never been there is not known", WITHOUT, "not"))
    missing = unasked(level, alone)
    more = f"not asked by this {level} audit: {missing}" if missing else ""
    said.append(Part(f"{sure} of {len(rows)} answers are sure", more, ""))
    return [replace(said[0], head=said[0].head[0].upper() + said[0].head[1:]), *said[1:]]


WITHOUT = "nobody has retrained without it, which `ease reference RUN` does"


def text(parts: Sequence[Part]) -> str:
    """The sentence without its tones."""
    return f"{'; '.join(f'{p.head}: {p.why}' if p.why else p.head for p in parts)}."


def _part(question: str, rows: Sequence[Row]) -> Part:
    bad = [r for r in rows if not r.answer.startswith((*GOOD, "above", UNSURE))]
    unsure = [r for r in rows if r.answer.startswith(UNSURE)]
    doubtful = [r for r in unsure if _beyond(r)]
    good, perhaps, *worse = HEADS[question]
    if beyond := bad or doubtful:
        head = worse[bool(bad)] if worse else f"{'' if bad else 'perhaps '}{_side(beyond)}"
        limit = "its limit" if len(beyond) == 1 else "their limits"
        why = f"{len(beyond)} of {_numbers(rows)} {'surely' if bad else 'perhaps'} beyond {limit} ({_most(beyond)})"
        why += f", {len(doubtful)} more perhaps ({_most(doubtful)})" if bad and doubtful else ""
    else:
        sure = len(rows) - len(unsure)
        head = good if not unsure else f"{good}, as far as can be told" if sure else perhaps
        above = any(abs(r.gap) > r.threshold for r in rows)  # of what is kept, and no fault
        why = f"none of {_numbers(rows)} is worse than its limit allows" if above else ""
        of = "beside strangers" if question in ALONE else "of retraining"
        why = why or f"{len(rows)} of {_numbers(rows)} within the limit {of}"
        why += f", {sure or 'none'} of them surely" if unsure else ""
    if question in (KEPT, AS_BEFORE) and (retain := [r for r in rows if r.what == "r1.retain"]):
        other = [r for r in beyond if r.what != "r1.retain"]
        also = ("also " if len(other) < len(beyond) else "") + ("" if bad else "perhaps ")
        shown = next((r for r in reversed(retain) if r in beyond), retain[-1])
        why = _retained(shown) + (f" ({also}beyond the limit: {_most(other)})" if other else "")
    return Part(head, why, "too" if bad else "not" if unsure else "like")


def _numbers(rows: Sequence[Row]) -> str:
    return f"{len(rows)} number{'' if len(rows) == 1 else 's'}"


def _beyond(r: Row) -> bool:
    """Whether a number is beyond its limit, surely or not; of what is kept, below it; beside strangers, above it."""
    if r.question in (UNKNOWN, STILL):
        return r.gap > r.threshold
    kept = r.what in (*ONE_SIDED, "r1.forget_shared")
    return not (r.gap >= -r.threshold if kept else abs(r.gap) <= r.threshold)


def _side(rows: Sequence[Row]) -> str:
    """What numbers beyond their limits say of forgetting; a distance has no side."""
    above = {r.gap > 0 for r in rows if not r.what.startswith("distance")}
    if len(above) == 2:
        return "too little forgotten by some numbers, too much by others"
    if not above:
        return "forgotten otherwise than by retraining"
    return "too little forgotten" if True in above else "too much forgotten"


def _most(rows: Sequence[Row]) -> str:
    """The number that is furthest beyond its limit."""
    r = max(rows, key=lambda r: abs(r.gap) / r.threshold)
    n = digits(r.value, r.reference, r.threshold)
    side = "from" if r.what.startswith("distance") else "above" if r.gap > 0 else "below"
    reference = AGAINST.get(r.against, "retraining")
    gap = f"{abs(r.gap):.{n}f}{' points' if n == 1 else ''} {side} {reference}"
    return f"{'most of all ' if len(rows) > 1 else ''}{words(r.what)}, {gap}"


AGAINST = {"chance": "chance", "strangers": "strangers", "base": "the model before any learning", "original": "what it was"}
"""What a number is set beside, in words; all others are retrained models."""


def _retained(r: Row) -> str:
    side, long = "below" if r.gap < 0 else "above", " for as many rounds" if r.against == "retrain_equal" else ""
    near = "as" if r.against == "original" else "as after"
    away = f"{abs(r.gap):.1f} points {side}" if abs(r.gap) >= 0.05 else near
    return f"R@1 of the retain set is {r.value:.1f} %, {away} {AGAINST.get(r.against, 'retraining')}{long}"


def words(number: str) -> str:
    """A number of the verdict in words."""
    kind, _, rest = number.partition(".")
    if kind == "relearn":
        return f"R@1 after {rest} step{'' if rest == '1' else 's'} of learning it again"
    return f"R@1 of {rest}" if kind == "r1" else WORDS[number if number in WORDS else kind]


WORDS = {
    "distance": "distance of similarities",
    "similarity": "similarity of pairs",
    "people": "R@1 of a single person or label",
    "membership.cosine": "the membership attack by cosine",
    "membership.changed": "the membership attack by changed images",
    "membership.logistic": "the membership attack by regression",
    "cross.visual": "R@1 after the image tower alone has learnt it again",
    "cross.text": "R@1 after the text tower alone has learnt it again",
    "backdoor": "the backdoor",
    "probe": "the linear probe",
    "ulira": "the attack U-LiRA",
}


# ---- why, in three small figures -------------------------------------------------------------------------------------------

SIZE = (3.1, 2.3)
FORGET = "How often the first answer of a search is right (R@1), asked for what was forgotten. The dashed line is the target: "
FORGET += "beyond it too little is forgotten, short of it too much."
RETAIN = "R@1 on what is to be kept. The dashed line is the target: short of it something is lost, beyond it is no fault."
AGAIN = "R@1 while it is learnt again. The dashed curve is the target: above it something is left, below it too much is gone."
ALIKE = "How alike image and caption of each forgotten pair are. The target is where the retrained model has them."


def pictures(numbers: figures.Plain, scores: figures.Scores) -> list[Drawing]:
    """Recall on what was forgotten and on what is kept, and how fast it is learnt again; where that was not asked, how alike
    its pairs are. Without what nobody could judge."""
    name, references = figures.forgotten(numbers["unlearned"], "r1."), references_of("unlearned", list(numbers))
    found = [_recall(("first-forget", "Is it forgotten?", FORGET), numbers, name, references)] if name and references else []
    if "r1.retain" in numbers["unlearned"]:
        long = ["retrain_equal"] if "retrain_equal" in numbers else []
        target = long or references or ["original"]
        found.append(_recall(("first-retain", "Is the rest kept?", RETAIN), numbers, "retain", target, long))
    figure, ax = draw(*SIZE)
    if "relearn.0" in numbers["unlearned"]:
        rows = figures.relearnt(ax, numbers, [m for m in figures.THREE if m in numbers])
        ax.set(ylabel=f"R@1 %{figures.aim(numbers)}")
        legend(figure, ax, ncols=3, columnspacing=1, handlelength=1.8)
        reading = AGAIN if references else AGAIN.partition(" The dashed")[0]
        found.append(Drawing("first-again", "Is it slow to learn again?", reading, figure, (figures.RELEARNT, rows)))
    elif f"similarity.{name}" in scores.get("unlearned", {}):
        rows = figures.ridge(ax, scores, name)
        ax.set(title="")
        reading = ALIKE if references else ALIKE.partition(" The target")[0]
        found.append(Drawing("first-alike", "Are its pairs alike?", reading, figure, (figures.ALIKE, rows)))
    return found


def _recall(
    said: tuple[str, str, str], numbers: figures.Plain, name: str, target: Sequence[str], more: Sequence[str] = ()
) -> Drawing:
    """Bars of the models' R@1 on a set, with intervals, and a line at the target, the mean of these models. said: name, title
    and reading of the drawing.  more: models to be shown beside those that are there always."""
    figure, ax = draw(*SIZE)
    shown = {m: numbers[m][f"r1.{name}"] for m in (*figures.THREE, "retrain_2", *more) if m in numbers}
    values = {MODELS[m].label: found["value"] for m, found in shown.items()}
    ends = [[abs(found.get(end, found["value"]) - found["value"]) for found in shown.values()] for end in ("low", "high")]
    bars(ax, values, [BLUE if m.startswith("retrain") else MODELS[m].color for m in shown], ".1f", xerr=ends)
    ax.axvline(mean(numbers[m][f"r1.{name}"]["value"] for m in target), color=BLUE, ls="--")
    ax.set(xlim=(0, 100))
    ax.set_xlabel(f"R@1 % on {name}", loc="right")
    rows = [[m, f["value"], f.get("low"), f.get("high")] for m, f in shown.items()]
    return Drawing(*said, figure, (["model", "r1", "low", "high"], rows))
