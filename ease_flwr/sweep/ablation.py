"""What each part of EASE is for: the same federation, one part off or one choice swapped at a time."""

from __future__ import annotations

from collections.abc import Sequence

from ease_flwr.audit.summary import cost_shares, spread
from ease_flwr.sweep.cells import Found, Variant, finished, shown_sets

ABLATION: dict[str, Sequence[Variant]] = {
    "parts": (
        Variant("EASE"),
        Variant("no BKE", settings={"strategy.bke.enabled": False}),
        Variant("no GSD", settings={"strategy.gsd.source": "none"}),
        Variant("no projection", settings={"strategy.project": False}),
        Variant("no lock", settings={"strategy.lock.strength": 0, "strategy.lock.share": 0}),
        Variant("lock on the server only", settings={"strategy.lock.strength": 0}),
        Variant("lock on clients only", settings={"strategy.lock.share": 0}),
        Variant("fine-tuning", "finetune", {"strategy.rounds": 8}),
    ),
    "foils": (
        Variant("no BKE, random subspace", settings={"strategy.bke.enabled": False, "strategy.gsd.subspace": "random"}),
        Variant("no BKE, whole forget subspace", settings={"strategy.bke.enabled": False, "strategy.gsd.subspace": "whole"}),
        Variant("no BKE, reference theta_T", settings={"strategy.bke.enabled": False, "strategy.gsd.reference": "request"}),
    ),
    "bke": (
        Variant("target unseen", settings={"strategy.bke.target": "unseen"}),
        Variant("target zero-shot", settings={"strategy.bke.target": "zero-shot"}),
        Variant("target non-pair", settings={"strategy.bke.target": "non-pair"}),
        Variant("full way", settings={"strategy.bke.way": 1}),
        Variant("joint side only", settings={"strategy.bke.sides": "joint"}),
        Variant("visual side", settings={"strategy.bke.sides": "visual"}),
        Variant("text side", settings={"strategy.bke.sides": "text"}),
        Variant("similarity form only", settings={"strategy.bke.margin": 0}),
        Variant("margin form only", settings={"strategy.bke.weight": 0}),
    ),
    "gsd": (
        Variant("tau 0.4", settings={"strategy.gsd.tau": 0.4}),
        Variant("tau 0.5", settings={"strategy.gsd.tau": 0.5}),
        Variant("tau 0.6", settings={"strategy.gsd.tau": 0.6}),
        Variant("tau 0.7", settings={"strategy.gsd.tau": 0.7}),
        Variant("scope tower", settings={"strategy.gsd.scope": "tower"}),
        Variant("scope vector", settings={"strategy.gsd.scope": "vector"}),
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
    sets = shown_sets(done[0])
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
        cells.append(spread([r["gaps"]["pair_similarity"] for r in runs], 3))
        cells += [f"{100 * share:.1f}" for share in cost_shares(runs)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
