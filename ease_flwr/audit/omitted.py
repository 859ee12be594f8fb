"""What is left out, by its name and why: a recall needs a query, and what compares pairs with each other needs two."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from ease_flwr.audit.examination import Answers
from ease_flwr.audit.intervals import Measure
from ease_flwr.clients.audit import FORGET_SETS
from ease_flwr.exchange.examined import TWO
from ease_flwr.exchange.judgement import Judgement

QUERY = "no client that answers has a query of it"
MEMBERS = "needs two members"
"""Of what an interval is drawn from."""
NEEDS = {
    "cka": "needs two pairs of a client that differ",
    "probe": "needs two forgotten pairs of a client, and two that nobody trained on",
    "relearn": "needs two forgotten pairs of a client, which are learnt from each other",
    "membership.logistic": "needs scikit-learn, and eight pairs on either side",
    "wording": "needs two captions of a picture, or two queries about a label",
    "correlation": "needs two pairs that are not equally similar",
    "people": "needs a pair with a label",
}
NEEDS["cross"] = NEEDS["relearn"]
PROBES = {"alignment": ("cka.forget", "cka.public"), "linear_probe": ("probe",), "relearning": ("relearn",)}
PROBES |= {"cross_modal": ("cross",), "membership": ("membership.logistic",)}
"""Numbers of a probe that need more than one pair."""
WITHOUT = ("cka", "ks")
"""Numbers that never have an interval."""


def of_audit(answers: Answers, numbers: Mapping[str, Measure], probes: Collection[str], beside: bool) -> dict[str, str]:
    """Of one model: what these probes ask and `numbers` does not have. beside: whether it stands beside a retrained model."""
    out = {f"r1.{s}": QUERY for s in ("forget", "retain", "test") if s not in answers.sets}
    asked = [s for s in FORGET_SETS if s in answers.sets]
    names = [f"wording.{s}" for s in answers.sets]
    if beside:
        names += [f"correlation.{s}" for s in answers.sets if s in (*FORGET_SETS, "retain")]
        names += [f"people.{s}" for s in asked]
    some = [name for p in probes for name in PROBES.get(p, ()) if beside or not name.startswith("cka")]
    names += some if asked else []
    out |= {name: NEEDS.get(name) or NEEDS[name.partition(".")[0]] for name in names if not _there(name, numbers)}
    few = sum(n < TWO for n in answers.looked_at)
    if 0 < few < len(answers.looked_at):
        of = f"of {few} of {len(answers.looked_at)} clients"
        alone = [name for name in some if _there(name, numbers) and name not in ("cka.public", "membership.logistic")]
        out |= {f"{name} {of}": NEEDS[name.partition(".")[0]] for name in alone}
    plain = [name for name, m in numbers.items() if np.isnan(m.low) and name.partition(".")[0] not in WITHOUT]
    return out | {f"interval of {name}": MEMBERS for name in plain if name != "relearn.area"}


def of_models(found: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Of all models, from `of_audit` of each: what not all of them leave out is named with those that do."""
    out = {}
    for name, why in {name: why for left_out in found.values() for name, why in left_out.items()}.items():
        models = [m for m, left_out in found.items() if name in left_out]
        out[name if len(models) == len(found) else f"{name} ({', '.join(models)})"] = why
    return out


def of_results(found: Mapping[str, Judgement], gaps: Mapping[str, float | None], forgotten: bool) -> dict[str, str]:
    """Sets that nobody judges, and what of the gaps cannot be said. forgotten: whether something was."""
    sets = next(iter(found.values())).sets
    out = {s: QUERY for s in (*(("forget",) if forgotten else ()), "retain", "test") if s not in sets}
    if "forget_normalised" in gaps and gaps["forget_normalised"] is None:
        purged = "needs original, which was purged"
        out["forget_normalised"] = "needs a point between original and retrain" if "original" in found else purged
    return out


def lines(left_out: Mapping[str, str]) -> list[str]:
    """In words, a line a reason."""
    by_reason: dict[tuple[str, bool], list[str]] = {}
    for name, why in left_out.items():
        interval = name.startswith("interval of ")
        by_reason.setdefault((why, interval), []).append(name.removeprefix("interval of "))
    return [f"{'interval of ' if interval else ''}{', '.join(names)}: {why}" for (why, interval), names in by_reason.items()]


HEAD = "Left out"


def table(left_out: Mapping[str, str]) -> str:
    """Markdown; nothing where nothing is left out."""
    return "\n".join([f"### {HEAD}", "", *(f"- {line}" for line in lines(left_out))]) + "\n" if left_out else ""


def _there(name: str, numbers: Mapping[str, Measure]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for key in numbers)
