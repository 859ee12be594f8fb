"""What can be said of forgetting without a retrained model: what was forgotten must look like what nobody trained on.

Strangers are pairs that no client has trained on. The *three-sample view* has forgotten pairs, kept pairs and strangers side by
side, under each model. docs/audit.md says what such a verdict cannot show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ease_flwr.audit import intervals
from ease_flwr.audit.examination import Answers
from ease_flwr.audit.intervals import NAN, Estimate, Measure, between, compared, members, possible
from ease_flwr.audit.verdict import STILL, UNKNOWN, Row
from ease_flwr.config import AuditConfig

Estimates = Mapping[str, Estimate]
BASE = "base"
"""The model before any learning: what it tells apart is no knowledge of this federation."""
SAMPLES = ("forget", "retain", "strangers")
WORDS = {"forget": "forgotten", "retain": "kept", "strangers": "strangers"}
KINDS = {"similarity": "cosine of each pair", "r1": "R@1 %"}
JUDGED = {"unlearned": UNKNOWN, "continued": STILL}
CANNOT = (
    "No retrained model stands beside these numbers, so this is no comparison with retraining. Forgotten pairs that are like "
    "kept ones are known by generalisation: retraining would know them too, and here they look as if they were left. A model "
    "that was harmed may look like strangers too. Only a reference tells."
)


def samples(answers: Answers) -> dict[str, Estimate]:
    """similarity.SAMPLE and r1.SAMPLE of one model, for the samples that somebody judged. Each sample draws its own members."""
    out: dict[str, Estimate] = {}
    for seed, name in enumerate(SAMPLES):
        if not (found := answers.samples.get(name)):
            continue
        member = members(found["labels"])
        both = member, member.repeat(found["captions"].astype(int))
        out[f"similarity.{name}"] = intervals.mean(found["similarity"], member, seed)
        out[f"r1.{name}"] = intervals.share_of([found["i2t"] <= 1, found["t2i"] <= 1], both, seed)
    return out


def view(found: Mapping[str, Estimates]) -> dict[str, Any]:
    """{"models": model -> number -> measure, "way": model -> kind -> measure, or why not}. found: `samples` of each."""
    models = {m: {key: _plain(possible(key, compared(e))) for key, e in own.items()} for m, own in found.items() if own}
    ways = {m: {kind: _way(found, m, kind) for kind in KINDS} for m in JUDGED if f"r1.{SAMPLES[0]}" in found.get(m, {})}
    return {"models": models, "way": ways}


def way(before: tuple[Estimate, Estimate], after: tuple[Estimate, Estimate]) -> Measure | None:
    """The share of the way to strangers that forgotten pairs have moved, 1 - (f' - s') / (f - s): 0 is nothing, 1 all of it.

    before, after: of forgotten pairs and of strangers, in the original and in another model.  None where the original itself
    did not surely have the forgotten pairs above strangers: there is no way to go.
    """
    start, end = between(*before), between(*after)
    if not compared(start).low > 0:
        return None
    value = 1 - end.value / start.value
    draws = None if start.draws is None or end.draws is None else 1 - end.draws / np.where(start.draws > 0, start.draws, NAN)
    return compared(Estimate(value, draws, start.units))


def rows(own: Mapping[str, Estimates], found: Mapping[str, Estimates], limits: AuditConfig) -> list[Row]:
    """The verdict against strangers, of *unlearned* and *continued*. own: measures.estimates by model.  found: `samples`."""
    out = []
    for model, question in JUDGED.items():
        here, there = own.get(model, {}), found.get(model, {})
        for key in (k for k in here if k.startswith("membership.")):
            chance = compared(here[key], [Estimate(0.5, None if here[key].draws is None else np.full(intervals.DRAWS, 0.5))])
            out.append(row((question, key), (model, "chance"), chance, limits.auc))
        if "probe" in here and "probe" in own.get(BASE, {}):
            base = compared(here["probe"], [own[BASE]["probe"]])
            out.append(row((question, "probe"), (model, BASE), base, limits.auc))
        for kind, limit in (("similarity", limits.distance), ("r1", limits.recall)):
            if f"{kind}.forget" in there and f"{kind}.strangers" in there:
                theirs = there[f"{kind}.forget"], there[f"{kind}.strangers"]
                gap = compared(between(*theirs))
                beside = Measure(theirs[0].value, gap=gap.value, gap_low=gap.low, gap_high=gap.high)
                out.append(row((question, f"{kind}.forget"), (model, "strangers"), beside, limit))
    return out


def row(asked: tuple[str, str], of: tuple[str, str], found: Measure, limit: float) -> Row:
    """The answer for one number; only above is worse. asked: question and number.  of: the model, and what it is set beside."""
    found = possible(asked[1], found)
    low, high = found.gap_low, found.gap_high
    if high < -limit:
        answer = "like strangers, even less known"
    elif high <= limit:
        answer = "like strangers"
    elif low > limit:
        answer = "not forgotten"
    else:
        doubt = "perhaps not forgotten" if found.gap > limit else "that it is not forgotten cannot be excluded"
        answer = f"not sure: {doubt}; more members or pairs, or a reference would tell"
    return Row(*asked, *of, found.value, found.value - found.gap, found.gap, low, high, limit, NAN, 0, answer)


HEAD = "### Three samples: what was forgotten, what is kept, and what nobody trained on"


def table(found: Mapping[str, Any]) -> str:
    """Markdown of the view: where each model has the three samples, and the share of the way."""
    lines = [HEAD, "", f"| {' | '.join(head(found))} |", "|---|---|---:|---:|---:|---:|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in body(found))]) + "\n"


def head(found: Mapping[str, Any]) -> list[str]:
    """Of the table."""
    return ["number", "model", *(WORDS[s] for s in SAMPLES), "share of the way to strangers"]


def body(found: Mapping[str, Any]) -> list[list[str]]:
    """Its rows."""
    out = []
    for kind, words in KINDS.items():
        for model, numbers in found["models"].items():
            cells = [_shown(numbers.get(f"{kind}.{s}"), kind) for s in SAMPLES]
            out.append([words, model, *cells, _shown(found["way"].get(model, {}).get(kind), "share")])
    return out


def _way(found: Mapping[str, Estimates], model: str, kind: str) -> dict[str, Any]:
    before, after = found.get("original", {}), found[model]
    keys = f"{kind}.forget", f"{kind}.strangers"
    if not all(k in before for k in keys):
        return {"why": "original is not there"}
    share = way((before[keys[0]], before[keys[1]]), (after[keys[0]], after[keys[1]]))
    return {"why": "original had it with the strangers, as far as can be told"} if share is None else _plain(share)


def _plain(m: Measure) -> dict[str, float]:
    """For JSON, which knows no NaN."""
    values = {"value": m.value, "low": m.low, "high": m.high}
    return {k: round(v, 6) for k, v in values.items() if not np.isnan(v)}


def _shown(m: Mapping[str, Any] | None, kind: str) -> str:
    if not m:
        return "-"
    if "why" in m:
        return str(m["why"])
    n = 1 if kind == "r1" else 2
    return f"{m['value']:.{n}f}" + (f" ({m['low']:.{n}f} to {m['high']:.{n}f})" if "low" in m else "")


def nobody(holders: Sequence[str]) -> str:
    """What is said where no client that has forgotten pairs has answered."""
    who = f" ({', '.join(holders)})" if holders else ""
    return f"Nobody judged what was forgotten: no client that has such pairs{who} answers. The others say what they can.\n"
