"""`ease audit RUN --shadows N`: could an attacker with N federations of their own tell that the model once knew a pair?

U-LiRA (Hayes et al., arXiv 2403.01218), the likelihood-ratio attack (Carlini et al., arXiv 2112.03570) on unlearned models.
Each shadow is the run again with another order of data: it learns, forgets as the run did, and is trained again without. So
every forgotten pair has N scores of models that learnt and forgot it and N of models that never saw it. The attack is asked
about each shadow in turn, with Gaussians fitted to the others, and about the run itself. Where forgetting is perfect its AUC is
.5; what it says of the models before forgetting shows how strong it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ease_flwr import config
from ease_flwr.audit import verdict
from ease_flwr.audit.intervals import DRAWS, Measure
from ease_flwr.audit.summary import read_results, read_run_config
from ease_flwr.store.files import write_json, write_text
from ease_flwr.sweep import cells

Numbers = NDArray[np.float64]
FIRST_ORDER = 1000
"""evaluation.order_seed of the first shadow."""
SETTINGS = {"continuation.rounds": 0, "evaluation.equal": False, "evaluation.every": 0, "audit.level": "quick"}


def attack(run: Path, count: int, say: Callable[[str], None], jobs: int = 1) -> str:
    """Run the shadows of a finished run in RUN/shadows, and write ulira.json and ulira.md; returns what is in the latter.

    Raises ConfigError.
    """
    if count < 3:
        raise config.ConfigError(f"--shadows {count}: an attacker needs at least 3")
    results = read_results(run)
    ran = read_run_config(run)
    ours = {m: confidence(run, m)[None] for m in ("unlearned", "retrain")}  # what is missing there is said at once
    apart = ("experiment", "strategy", "run-dir", "fresh", "audit", "seed", "set", "own", "until", "resume")
    said = {k: v for k, v in ran.items() if k not in apart and v != ""} | config.said(ran)
    settings = [f"{k}={config.spelled(v)}" for k, v in said.items() if k != "seed"]
    common = {**SETTINGS, "learn.patience": 0, "learn.rounds": results["learning"]["rounds"]}
    variants = [
        cells.Variant(f"shadow {k}", ran["strategy"], {**common, "evaluation.order_seed": FIRST_ORDER + k})
        for k in range(count)
    ]
    sweep = cells.Sweep(ran["experiment"], [results["seed"]], run.absolute() / "shadows", settings, say, jobs)
    found = cells.run(sweep, variants)
    failed = [f"{label}: {r['failed']}" for label, by_seed in found.items() for r in by_seed.values() if "failed" in r]
    if failed:
        raise config.ConfigError(failed[0])
    folders = [run / "shadows" / f"seed-{results['seed']}" / v.folder for v in variants]
    shadows = {m: np.stack([confidence(f, m) for f in folders]) for m in ("original", "unlearned", "retrain")}
    limit = sweep.loaded.audit.auc
    measures = {m: measure(shadows[m], shadows["retrain"]) for m in ("original", "unlearned")}
    beside = [verdict.Beside(m, ("chance",), {"ulira": found}) for m, found in measures.items()]
    rows = [verdict.row((verdict.FORGOTTEN, "ulira"), b, limit, two_sided=True) for b in beside]
    asked = f"{count} shadows, each in its own order of data"
    own = {m: float((ratio(scores, shadows["unlearned"], shadows["retrain"]) > 0).mean()) for m, scores in ours.items()}
    text = verdict.table(rows, asked) + (
        f"\nOf this run's forgotten pairs the attack takes {own['unlearned']:.0%} for once known under the unlearned model, "
        f"and {own['retrain']:.0%} under the retrained one.\n"
    )
    write_json(run / "ulira.json", {"shadows": count, "asked": asked, "verdict": verdict.plain(rows), "taken_for_known": own})
    write_text(run / "ulira.md", text)
    return text


def confidence(folder: Path, model: str) -> Numbers:
    """log(p / (1 - p)) of every forgotten training pair, p the probability of its partner among public pairs, (n,).

    Raises ConfigError where the run's quick audit is missing, or nobody judged them.
    """
    try:
        levels = json.loads((folder / "audit.json").read_text(encoding="utf-8"))["scores"][model]["member_partner_loss"]
    except (OSError, ValueError, KeyError) as error:
        raise config.ConfigError(f"{folder}/audit.json: {error}: shadows need the quick audit of a run") from None
    if not levels:
        raise config.ConfigError(f"{folder}/audit.json: nobody judged what was forgotten: shadows are told from it")
    p = np.exp(-np.clip(np.asarray(levels, dtype=np.float64), 1e-6, None))
    return np.asarray(np.log(p) - np.log1p(-p))


def ratio(scores: Numbers, known: Numbers, unknown: Numbers) -> Numbers:
    """Log-likelihood ratio of scores (m, n) under "once known" against "never seen", given scores of shadows (k, n) of either.

    Each pair has its own means; the deviation is common to all pairs, as for few shadows (Carlini et al., section VI.C).
    """

    def likelihood(shadows: Numbers) -> Numbers:
        deviation = np.sqrt(shadows.var(0, ddof=1).mean()) + 1e-9
        return np.asarray(-(((scores - shadows.mean(0)) / deviation) ** 2) / 2 - np.log(deviation))

    return likelihood(known) - likelihood(unknown)


def measure(known: Numbers, unknown: Numbers) -> Measure:
    """AUC of the attack on shadows (k, n) each in turn; gap: above .5; interval: bootstrap over shadows."""
    rest = [np.delete(np.arange(len(known)), k) for k in range(len(known))]
    inside = np.stack([ratio(known[k][None], known[r], unknown[r])[0] for k, r in enumerate(rest)])
    outside = np.stack([ratio(unknown[k][None], known[r], unknown[r])[0] for k, r in enumerate(rest)])
    rng = np.random.default_rng(0)
    won = (inside[:, None, :, None] > outside[None, :, None, :]).mean((2, 3))
    won += (inside[:, None, :, None] == outside[None, :, None, :]).mean((2, 3)) / 2
    draws = (rng.integers(len(known), size=len(known)) for _ in range(DRAWS))
    low, high = np.percentile([won[np.ix_(d, d)].mean() for d in draws], [2.5, 97.5])
    value = float(won.mean())
    return Measure(value, float(low), float(high), value - 0.5, float(low - 0.5), float(high - 0.5))
