"""What each part of EASE is for: the same federation, one part off or one choice swapped at a time."""

from __future__ import annotations

from collections.abc import Sequence

from ease_flwr.audit.summary import cost_shares, spread
from ease_flwr.sweep.cells import Found, Variant, finished, gaps, left_out, shown_sets

BKE = {"strategy.bke.enabled": True}
ABLATION: dict[str, Sequence[Variant]] = {
    "parts": (
        Variant("EASE"),
        Variant("with BKE", settings=BKE),
        Variant("BKE in place of GSD", settings={"strategy.gsd.source": "none"}),
        Variant("no shrinking", settings={"strategy.shrink": 0}),
        Variant("shrinking alone", settings={"strategy.gsd.source": "none", "strategy.bke.enabled": False}),
        Variant("no projection", settings={"strategy.projection": 0}),
        Variant("full projection", settings={"strategy.projection": 1}),
        Variant("no lock", settings={"strategy.lock.share": 0}),
        Variant("lock on clients too", settings={"strategy.lock.strength": 20}),
        Variant("lock inside the forget phase", settings={"strategy.lock.strength": 20, "strategy.lock.inside": True}),
        Variant("constant learning rate", settings={"strategy.lr_end": 1}),
        Variant("fine-tuning", "finetune"),
    ),
    "foils": (
        Variant("random subspace", settings={"strategy.gsd.subspace": "random"}),
        Variant("whole forget subspace", settings={"strategy.gsd.subspace": "whole"}),
        Variant("whole forget subspace with BKE", settings={**BKE, "strategy.gsd.subspace": "whole"}),
        Variant("reference theta_T", settings={"strategy.gsd.reference": "request"}),
    ),
    "bke": (
        Variant("target unseen", settings={**BKE, "strategy.bke.target": "unseen"}),
        Variant("target zero-shot", settings={**BKE, "strategy.bke.target": "zero-shot"}),
        Variant("target non-pair", settings={**BKE, "strategy.bke.target": "non-pair"}),
        Variant("full way", settings={**BKE, "strategy.bke.way": 1}),
        *(Variant(f"side: {side}", settings={**BKE, "strategy.bke.sides": side}) for side in ("joint", "visual", "text")),
        Variant("similarity form only", settings={**BKE, "strategy.bke.margin": 0}),
        Variant("margin form only", settings={**BKE, "strategy.bke.weight": 0}),
    ),
    "gsd": (
        *(Variant(f"tau {tau}", settings={"strategy.gsd.tau": tau}) for tau in (0.6, 0.7, 0.8, 0.9)),
        Variant("fill 0.25", settings={"strategy.gsd.fill": 0.25}),
        Variant("energy 0.9", settings={"strategy.gsd.energy": 0.9}),
    ),
    "lambda": tuple(Variant(f"lambda {value}", settings={"strategy.lock.strength": value}) for value in (1, 5, 100)),
}
"""Groups of variants of EASE: METHOD's parts each switched off, foils, and every choice swapped."""


def table(found: Found) -> str:
    """Markdown: R@1 of *unlearned* and *continued* of each variant beside the references, mean ± spread over seeds; the
    distance of each pair's similarity to retrain's; and what was spent, as a share of retraining."""
    done = finished(found)
    if not done:
        return "no cell finished\n"
    sets = shown_sets(done)
    models = [m for m in ("unlearned", "continued") if all(m in r["models"] for r in done)]
    head = [*(f"{m} {s}" for m in models for s in sets), "distance of similarities", "steps %", "bytes %"]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    one_per_seed = list({r["seed"]: r for r in done}.values())
    references = {
        "original": ("original", None),
        "retrain": ("retrain", "retrain_continued"),
        "retrain_equal": ("retrain_equal", None),
    }
    for label, pair in references.items():
        if label in done[0]["models"]:
            cells = [
                spread([r["models"][m][s]["r1"] for r in one_per_seed]) if m else "" for m in pair[: len(models)] for s in sets
            ]
            lines.append(f"| *{label}* | " + " | ".join([*cells, "", "", ""]) + " |")
    for label, by_seed in found.items():
        runs = [r for r in by_seed.values() if "failed" not in r]
        if not runs:
            lines.append(f"| {label} | {next(iter(by_seed.values()))['failed']} |" + " |" * (len(head) - 1))
            continue
        cells = [spread([r["models"][m][s]["r1"] for r in runs]) for m in models for s in sets]
        similarity = gaps(runs, "pair_similarity")
        cells.append(spread(similarity, 3) if similarity else "-")
        cells += [f"{100 * share:.1f}" for share in cost_shares(runs)]
        lines.append(f"| {label} | " + " | ".join(cells) + (" |" if len(runs) == len(by_seed) else f" ({len(runs)} seeds) |"))
    return "\n".join([*lines, *(["", *more] if (more := left_out(done)) else [])]) + "\n"
