"""Recall of every model on every set as a table, and the gaps to the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np

from ease_flwr.config import AuditConfig
from ease_flwr.exchange.judgement import SETS, Judgement

SIGN = "R@1, model minus reference (of several retrainings the mean); ! is beyond the limit of the audit and worse"
"""What every table of differences says of itself."""


def numbered(name: str, there: Sequence[str]) -> list[str]:
    """Of these models NAME_1, NAME_2 and so on, in order: further retrainings, or *unlearned* after earlier requests."""
    found = [m for m in there if m.startswith(f"{name}_") and m.rpartition("_")[2].isdigit()]
    return sorted(found, key=lambda m: int(m.rpartition("_")[2]))


def references_of(model: str, there: Sequence[str]) -> list[str]:
    """What a model is set beside: all retrainings, by their mean; of what went on, the retraining that went on. Each further
    retraining stands beside the first, which shows the noise. None where nobody has retrained."""
    if model in ("continued", "retrain_continued") and "retrain_continued" in there:
        return ["retrain_continued"]
    again = numbered("retrain", there)
    first = ["retrain"] if "retrain" in there else []
    return first if model == "retrain" or model in again else [*first, *again]


def meant(model: str, reference: str, there: Sequence[str]) -> list[str]:
    """The models whose mean a pair of names means: *retrain* is all retrainings that there are."""
    return references_of(model, there) if reference == "retrain" else [reference]


def differences(sets: Mapping[str, Mapping[str, Any]], model: str, references: Sequence[str]) -> dict[str, float]:
    """Model minus the mean of its references in points of R@1, set by set. sets: model -> set -> {"r1": ...}, as results.json
    has them under `models`."""
    return {s: found["r1"] - mean(sets[r][s]["r1"] for r in references) for s, found in sets[model].items()}


def gaps(models: Mapping[str, Judgement], model: str, references: Sequence[str]) -> dict[str, float | None]:
    """Model minus reference in points of R@1, set by set; the reference is the mean of these models.

    forget_normalised is (F_u - F_R) / |F_original - F_R|, None where the headroom is below one point or original was purged;
    pair_similarity is the mean |s_u - s_R| over the forget pairs.
    """
    u, rs, o = models[model], [models[r] for r in references], models.get("original")
    out: dict[str, float | None] = {**differences({m: j.sets for m, j in models.items()}, model, references)}
    if "forget" in u.sets:  # nobody can judge it where the forgotten client is gone
        forget = mean(r.r1("forget") for r in rs)
        headroom = abs(o.r1("forget") - forget) if o else 0.0
        out["forget_normalised"] = (u.r1("forget") - forget) / headroom if headroom >= 1 else None
        out["pair_similarity"] = mean(float(np.abs(u.similarity["forget"] - r.similarity["forget"]).mean()) for r in rs)
    return out


def signed(name: str, difference: float, limits: AuditConfig, more: str = "") -> str:
    """A difference of a set as every table shows it: model minus reference, marked where it is beyond the limit on the side
    that is worse, which is either side of what is forgotten, and below for what is kept. more: goes before the mark."""
    forget = name.startswith("forget")
    worse = abs(difference) > limits.recall if forget else difference < -limits.retained
    return f"{difference:+.1f}{more}{' !' if worse else ''}"


def gap_line(model: str, reference: str, gap: Mapping[str, float | None], limits: AuditConfig) -> str:
    """Differences of one model in one line."""
    shown = {k: v for k, v in gap.items() if k not in ("forget_normalised", "pair_similarity")}
    cells = [f"{k} {signed(k, v, limits)}" for k, v in shown.items() if v is not None]
    cells += [f"{k} {'-' if gap[k] is None else format(gap[k], '+.2f')}" for k in ("forget_normalised",) if k in gap]
    cells += [f"{k} {gap[k]:.3f}" for k in ("pair_similarity",) if k in gap]
    return f"{model} minus {reference}: {'  '.join(cells)}"


def table(models: dict[str, Judgement]) -> str:
    """Markdown: models x sets, R@1 in percent (mean of both directions), with the size of each set and its gallery."""
    first = next(iter(models.values())).sets
    names = [s for s in SETS if s in first]
    lines = [
        "| R@1 % | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(names),
        "| pairs (gallery) | " + " | ".join(f"{first[s]['n']} ({first[s]['gallery']})" for s in names) + " |",
    ]
    lines += [f"| {m} | " + " | ".join(f"{j.r1(s):.1f}" for s in names) + " |" for m, j in models.items()]
    return "\n".join(lines) + "\n"
