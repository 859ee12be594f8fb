"""Many runs of one experiment, one after the other from the same learnt federation: what ablations and comparisons are made of.

Every cell is an ordinary `ease run` in a folder of its own. Finished cells are not run again, failed ones are shown with their
reason and do not stop the rest; learn phases and references come from the cache after the first cell of a seed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from ease_flwr import launcher
from ease_flwr.audit.summary import cost_shares, read_results, spread


@dataclass(frozen=True)
class Variant:
    """A row: a strategy with settings of its own ("strategy.tau": 0.5)."""

    label: str
    strategy: str = "ease"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return "".join(c if c.isalnum() or c in ".-" else "-" for c in self.label)


ABLATION: dict[str, Sequence[Variant]] = {
    "parts": (
        Variant("EASE"),
        Variant("no BKE", settings={"strategy.bke": False}),
        Variant("no GSD", settings={"strategy.gsd": "none"}),
        Variant("no projection", settings={"strategy.project": False}),
        Variant("no lock", settings={"strategy.lock": 0, "strategy.lock_share": 0}),
        Variant("lock on the server only", settings={"strategy.lock": 0}),
        Variant("lock on clients only", settings={"strategy.lock_share": 0}),
        Variant("fine-tuning", "finetune", {"strategy.rounds": 8}),
    ),
    "foils": (
        Variant("no BKE, random subspace", settings={"strategy.bke": False, "strategy.subspace": "random"}),
        Variant("no BKE, whole forget subspace", settings={"strategy.bke": False, "strategy.subspace": "whole"}),
        Variant("no BKE, reference theta_T", settings={"strategy.bke": False, "strategy.reference": "request"}),
    ),
    "bke": (
        Variant("target unseen", settings={"strategy.bke_target": "unseen"}),
        Variant("target zero-shot", settings={"strategy.bke_target": "zero-shot"}),
        Variant("target non-pair", settings={"strategy.bke_target": "non-pair"}),
        Variant("full way", settings={"strategy.bke_way": 1}),
        Variant("joint side only", settings={"strategy.bke_sides": "joint"}),
        Variant("visual side", settings={"strategy.bke_sides": "visual"}),
        Variant("text side", settings={"strategy.bke_sides": "text"}),
        Variant("similarity form only", settings={"strategy.bke_margin": 0}),
        Variant("margin form only", settings={"strategy.bke_weight": 0}),
    ),
    "gsd": (
        Variant("tau 0.4", settings={"strategy.tau": 0.4}),
        Variant("tau 0.5", settings={"strategy.tau": 0.5}),
        Variant("tau 0.6", settings={"strategy.tau": 0.6}),
        Variant("tau 0.7", settings={"strategy.tau": 0.7}),
        Variant("scope tower", settings={"strategy.scope": "tower"}),
        Variant("scope vector", settings={"strategy.scope": "vector"}),
        Variant("energy 0.9", settings={"strategy.energy": 0.9}),
    ),
    "lambda": tuple(Variant(f"lambda {value}", settings={"strategy.lock": value}) for value in (1, 5, 100)),
}
"""Groups of variants of EASE: METHOD's parts each switched off, foils, and every choice swapped."""


def run(
    experiment: str,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    folder: Path,
    assignments: list[str],
    say: Callable[[str], None],
) -> dict[str, dict[int, dict[str, Any]]]:
    """All cells: variant label -> seed -> results.json, or {"failed": reason}. Raises ConfigError at wrong settings."""
    found: dict[str, dict[int, dict[str, Any]]] = {v.label: {} for v in variants}
    cells = [(seed, v) for seed in seeds for v in variants]
    spent: list[float] = []
    for i, (seed, variant) in enumerate(cells, 1):
        cell = folder / f"seed-{seed}" / variant.folder
        started, again = time.monotonic(), ""
        if (cell / "results.json").is_file():
            again = " (was there)"
        else:
            shutil.rmtree(cell, ignore_errors=True)
            cell.parent.mkdir(parents=True, exist_ok=True)
            settings = [*assignments, *(f"{k}={v}" for k, v in variant.settings.items())]
            with (cell.parent / f"{cell.name}.log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
                launcher.run(experiment, variant.strategy, seed, cell, False, settings, 1, 0.0)
            spent.append(time.monotonic() - started)
        outcome = _outcome(cell)
        found[variant.label][seed] = outcome
        eta = f", ETA {mean(spent) * (len(cells) - i) / 60:.0f} min" if spent and i < len(cells) else ""
        say(f"[{i}/{len(cells)}] seed {seed}, {variant.label}: {outcome.get('failed', 'done')}{again}{eta}")
    return found


def _outcome(cell: Path) -> dict[str, Any]:
    if (cell / "results.json").is_file():
        return read_results(cell)
    try:
        return {"failed": f"failed: {json.loads((cell / 'state.json').read_text())['error']}"}
    except (OSError, ValueError, KeyError):
        return {"failed": f"failed, see {cell}.log"}


SHOWN = ("forget_exclusive", "forget_shared", "forget", "retain", "test")


def table(found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Markdown: R@1 of *unlearned* and *held* of each variant beside the references, mean ± spread over seeds; the distance of
    each pair's similarity to retrain's; and what was spent, as a share of retraining."""
    done = [r for by_seed in found.values() for r in by_seed.values() if "failed" not in r]
    if not done:
        return "no cell finished\n"
    sets = [s for s in SHOWN if s in done[0]["models"]["original"]]
    if "forget_exclusive" in sets:
        sets.remove("forget")
    head = [*(f"{m} {s}" for m in ("unlearned", "held") for s in sets), "|s - s_retrain|", "steps %", "bytes %"]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    one_per_seed = list({r["seed"]: r for r in done}.values())
    for unlearned, held in (("original", None), ("retrain", "retrain_held"), ("retrain_equal", None)):
        if unlearned in done[0]["models"]:
            cells = [spread([r["models"][unlearned][s]["r1"] for r in one_per_seed]) for s in sets]
            cells += [spread([r["models"][held][s]["r1"] for r in one_per_seed]) if held else "" for s in sets]
            lines.append(f"| *{unlearned}* | " + " | ".join([*cells, "", "", ""]) + " |")
    for label, by_seed in found.items():
        runs = [r for r in by_seed.values() if "failed" not in r]
        if not runs:
            lines.append(f"| {label} | {next(iter(by_seed.values()))['failed']} |" + " |" * (len(head) - 1))
            continue
        cells = [spread([r["models"][m][s]["r1"] for r in runs]) for m in ("unlearned", "held") for s in sets]
        cells.append(spread([r["gaps"]["pair_similarity"] for r in runs], 3))
        cells += [f"{100 * share:.1f}" for share in cost_shares(runs)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
