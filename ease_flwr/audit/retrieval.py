"""Recall of every model on every set as a table, and the gaps to the reference."""

from __future__ import annotations

import numpy as np

from ease_flwr.exchange.judgement import SETS, Judgement


def gaps(models: dict[str, Judgement], unlearned: str, reference: str) -> dict[str, float | None]:
    """Distance of a model to its reference, in points of R@1; forget gaps are absolute, others reference minus model.

    forget_normalised is |F_u - F_R| / |F_original - F_R|, None where the headroom is below one point or original was purged;
    pair_similarity is the mean |s_u - s_R| over the forget pairs.
    """
    u, r, o = models[unlearned], models[reference], models.get("original")
    out: dict[str, float | None] = {}
    for name in u.sets:
        signed = r.r1(name) - u.r1(name)
        out[name] = abs(signed) if name.startswith("forget") else signed
    if "forget" in u.sets:  # nobody can judge it where the forgotten client is gone
        headroom = abs(o.r1("forget") - r.r1("forget")) if o else 0.0
        out["forget_normalised"] = abs(u.r1("forget") - r.r1("forget")) / headroom if headroom >= 1 else None
        out["pair_similarity"] = float(np.abs(u.similarity["forget"] - r.similarity["forget"]).mean())
    return out


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
