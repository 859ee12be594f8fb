"""The three anchors by which forgotten knowledge comes back (EASE, arXiv 2605.00733), measured before (*original*), after
(*unlearned*) and in the retrained model (*retrain*).

Modality: one tower still holds its half of the association. Unique subspace: what only the forgotten brought lies along
directions of its own, U. Temporal: later rounds write again along them. docs/audit.md says how to read the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ease_flwr.audit.examination import TOWERS, Answers
from ease_flwr.audit.intervals import Estimate, compared
from ease_flwr.exchange.examined import BATCH_SEEDS, CROSS_STEPS
from ease_flwr.exchange.judgement import PARTS

if TYPE_CHECKING:
    from ease_flwr.model.lock import ForgetLock

Plain = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Model -> number -> {"value", "low", ...}, as audit.json has them."""
COLUMNS = ("original", "unlearned", "retrain")
HEAD = ("anchor", "number", "before", "after", "retrained", "how to read it")
FULL = "full audit"
"""In place of what a quick audit does not ask."""


# ---- what is measured ------------------------------------------------------------------------------------------------------


def modality(numbers: Plain) -> dict[str, Any]:
    """{"recall": {"set", "models"}, "swap": what -> tower -> model -> number, "cross": tower -> model -> number}.

    what: "all", or a part of forget_exclusive. Empty where nobody judges what was forgotten.
    """

    def of(key: str) -> dict[str, Mapping[str, float]]:
        return {m: found[key] for m, found in numbers.items() if key in found}

    swap = {"all": {t: of(f"swap.{t}") for t in TOWERS}} | {p: {t: of(f"swap.{t}.{p}") for t in TOWERS} for p in PARTS}
    found = {
        "swap": {what: by_tower for what, by_tower in swap.items() if any(by_tower.values())},
        "cross": {t: models for t in TOWERS if (models := of(f"cross.{t}"))},
    }
    name = asked(set().union(*numbers.values()))
    return found | ({"recall": {"set": name, "models": of(f"r1.{name}")}} if name else {})


def subspace(
    lock: ForgetLock | None, moved: Mapping[str, NDArray[np.float32]], answers: Mapping[str, Answers]
) -> dict[str, Any]:
    """Shares of squared lengths along U, by model: of what learning has moved (p,), and of one step of learning again in each
    order of batches. Only "why" where nothing is locked."""
    import torch

    if lock is None or not lock.dimension:
        reason = "the method leaves no forget lock" if lock is None else "the lock has no direction"
        return {"why": f"{reason}: there is no unique subspace to measure along"}
    directions, size = sum(basis.shape[1] for _, basis in lock.separate), len(next(iter(moved.values())))
    steps = {m: a.regained for m, a in answers.items() if a.regained.size}
    return {
        "directions": directions,
        "chance": directions / size,
        "energy": {m: lock.energy(torch.from_numpy(d)) for m, d in moved.items()},
        "step": {m: {"mean": float(s.mean()), "sd": float(s.std(ddof=1)), "orders": s.tolist()} for m, s in steps.items()},
        "sent": lock.strength > 0,
    }


def temporal(
    lock: ForgetLock | None,
    rounds: Sequence[Mapping[str, Any]],
    drift: Mapping[str, float],
    own: Mapping[str, Mapping[str, Estimate]],
) -> dict[str, Any]:
    """The continuation: its rounds as strategies/ordinary.py notes them, the drift at its end by model, the bounds of the
    drift, and the recall of what was forgotten that came back, by model. Empty without a continuation."""
    if "continued" not in own:
        return {}
    begun = {"continued": ["unlearned"], "retrain_continued": ["retrain_equal", "retrain"]}
    name, back = asked(own["continued"]), {}
    for model, starts in begun.items():
        start = next((s for s in starts if s in own), None)
        if name and start and model in own:
            change = asdict(compared(own[model][f"r1.{name}"], [own[start][f"r1.{name}"]]))
            back[model] = {"since": start} | {k: v for k, v in change.items() if k.startswith("gap") and v == v}
    return {"rounds": list(rounds), "drift": dict(drift), "bounds": bounds(lock, rounds), "set": name, "back": back}


def bounds(lock: ForgetLock | None, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By which the drift after these rounds is bounded, from none at their beginning; what has no bound is missing.

    published: min(n lr G, G / lambda), of the clients' half.  server: d (1 - share) / share, d the largest drift that a round
    added, of the server's.  Where the lock fades, lambda and share are the weakest so far. G is the largest push that a client
    reported, n the steps of the clients that took most.
    """
    if lock is None or not rounds:
        return {}
    if not lock.orthonormal:
        return {"why": "blocks of several locks overlap: the bounds are of one orthonormal U"}
    found: dict[str, Any] = {}
    strength, share = (min(r[key] for r in rounds) for key in ("strength", "share"))
    if all(r["push"] is not None for r in rounds):
        push, way = max(r["push"] for r in rounds), sum(r["steps"] * r["lr"] for r in rounds)
        found |= {"push": push, "strength": strength, "published": push * min(way, 1 / strength if strength else way)}
    else:
        found["why"] = "lock.strength is 0: the published bound, G / lambda, does not apply"
    if share:
        found |= {"share": share, "server": max(r["added"] for r in rounds) * (1 - share) / share}
    return found


def asked(keys: Any) -> str:
    """The set of what was forgotten that recall is told of: what only the client knew, where that is split off."""
    return next((s for s in ("forget_exclusive", "forget") if f"r1.{s}" in keys), "")


# ---- the table -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line of the table, in words and digits."""

    anchor: str
    number: str
    before: str
    after: str
    retrained: str
    reading: str


def lines(anchors: Mapping[str, Any], level: str) -> list[Line]:
    """The table of the three anchors, from what audit.json has under `anchors`. level: of the audit."""
    unasked = FULL if level == "quick" else "-"
    return [*_modality(anchors["modality"], unasked), *_subspace(anchors["subspace"], unasked), *_temporal(anchors["temporal"])]


def table(found: Sequence[Line]) -> str:
    """Markdown."""
    rows = [f"| {' | '.join(asdict(line).values())} |" for line in found]
    return "\n".join(["### The three anchors", "", f"| {' | '.join(HEAD)} |", "|---|---|---:|---:|---:|---|", *rows]) + "\n"


def _modality(found: Mapping[str, Any], unasked: str) -> list[Line]:
    out = []
    if recall := found.get("recall"):
        reading = "The whole model, for comparison."
        out.append(Line("modality", f"R@1 %, {recall['set']}", *_three(recall["models"], _number), reading))
    if not found["swap"]:
        why = (
            "A retrained model would have to stand beside it." if out else "Nobody is there who could judge what was forgotten."
        )
        return [*out, Line("modality", "swapped towers", "-", "-", "-", why)]
    names = {"visual": ("image tower", "text tower"), "text": ("text tower", "image tower")}
    for what, by_tower in found["swap"].items():
        for tower, (ours, other) in names.items():
            reading = f"Before: high where the {ours} holds the pairs. After: above retrained is residue in it."
            number = f"R@1 % of its {ours} with the {other} of retrain"
            if what != "all":
                number, reading = f"{number}, {what}", "The same of this part alone."
            out.append(Line("modality", number, *_three(by_tower[tower], _number), reading))
    for tower, (ours, _) in names.items():
        reading = "Above retrained, something is left in either tower. The swapped towers say in which."
        number = f"R@1 % after the {ours} alone has learnt {CROSS_STEPS} steps"
        out.append(Line("modality", number, *_three(found["cross"].get(tower, {}), _number, unasked), reading))
    return out


def _subspace(found: Mapping[str, Any], unasked: str) -> list[Line]:
    if why := found.get("why"):
        return [Line("unique subspace", "energy along U", "-", "-", "-", f"{why[0].upper()}{why[1:]}.")]
    reading = f"Of all that learning moved. U has {found['directions']} directions: by chance {100 * found['chance']:.2f} %."
    out = [
        Line("unique subspace", "% of squared length along U", *_three(found["energy"], lambda e: f"{100 * e:.2f}"), reading)
    ]
    reading = f"Of one step on the forgotten pairs, {BATCH_SEEDS} orders. Above retrained, the way back leads along U."
    if not found["sent"]:
        unasked, reading = "-", "lock.strength is 0, so U stays on the server: no client can tell."
    cells = _three(found["step"], lambda s: f"{100 * s['mean']:.2f} ± {100 * s['sd']:.2f}", unasked)
    return [*out, Line("unique subspace", "% of one relearning step along U", *cells, reading)]


def _temporal(found: Mapping[str, Any]) -> list[Line]:
    if not found:
        return [Line("temporal", "continuation", "-", "-", "-", "The run did not go on after forgetting.")]
    rounds, drift, bound = found["rounds"], found["drift"], found["bounds"]
    if rounds:
        most = max(r["drift"] for r in rounds)
        reading = f"At most {most:.4f} after one of {len(rounds)} rounds. Retrained: how far it lies from where the lock holds."
    else:
        reading = "Nothing is locked."
    continued, retrained = (f"{drift[m]:.4f}" if m in drift else "-" for m in ("continued", "retrain_continued"))
    out = [Line("temporal", "drift along U, after going on", "-", continued, retrained, reading)]
    if rounds:
        out.append(Line("temporal", "bound of the drift", "-", *_bound(bound)))
    if found["back"]:
        came, there = (_change(found["back"].get(m)) for m in ("continued", "retrain_continued"))
        reading = "Points gained by going on. More than retrained gains is resurfacing."
        out.append(Line("temporal", f"R@1 that came back, {found['set']}", "-", came, there, reading))
    return out


def _bound(found: Mapping[str, Any]) -> tuple[str, str, str]:
    """Cells and reading of the line of the bounds."""
    said = [f"{found['why'][0].upper()}{found['why'][1:]}."] if "why" in found else []
    if "published" in found:
        weight = f"lambda {found['strength']:g}"
        said.append(f"Published: min(n lr G, G / lambda), G {found['push']:.3g}, {weight}.")
    if "server" in found:
        said.append(f"The server's own half: at most {found['server']:.4f} (share {found['share']:g}).")
    best = [found[key] for key in ("published", "server") if key in found]
    return f"{found['published']:.4f}" if "published" in found else f"{best[0]:.4f}" if best else "-", "-", " ".join(said)


def _three(found: Mapping[str, Any], shown: Any, missing: str = "-") -> tuple[str, str, str]:
    before, after, retrained = (shown(found[m]) if m in found else missing for m in COLUMNS)
    return before, after, retrained


def _number(measure: Mapping[str, float]) -> str:
    interval = f" ({measure['low']:.1f} to {measure['high']:.1f})" if "low" in measure else ""
    return f"{measure['value']:.1f}{interval}"


def _change(measure: Mapping[str, float] | None) -> str:
    if measure is None:
        return "-"
    interval = f" ({measure['gap_low']:+.1f} to {measure['gap_high']:+.1f})" if "gap_low" in measure else ""
    return f"{measure['gap']:+.1f}{interval}"
