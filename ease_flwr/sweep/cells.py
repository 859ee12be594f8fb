"""The engine: cells are ordinary `ease run`s in folders of their own, from the same learnt federation.

Finished cells are not run again, failed ones are shown with their reason and do not stop the rest; learn phases and references
come from the cache after the first cell of a seed.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from ease_flwr import config, strategies
from ease_flwr.audit.summary import read_results
from ease_flwr.hosts.processes import Family

Found = dict[str, dict[int, dict[str, Any]]]
"""Label of a variant -> seed -> results.json, or {"failed": reason}."""


@dataclass(frozen=True)
class Variant:
    """A row: a strategy with settings of its own ("strategy.gsd.tau": 0.5)."""

    label: str
    strategy: str = "ease"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return "".join(c if c.isalnum() or c in ".-_" else "-" for c in self.label)


@dataclass(frozen=True)
class Sweep:
    """Where cells are run, and how."""

    experiment: str
    seeds: Sequence[int]
    folder: Path
    assignments: Sequence[str] = ()
    """key=value of the experiment, for all cells."""
    say: Callable[[str], None] = print
    jobs: int = 1
    """Cells at a time."""
    before: int = 0
    after: int = 0
    """Cells of the same command that are run before and after these, as far as they are known: all are counted together."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the assignments say."""
        return config.parse_assignments(self.assignments)

    def under(self, assignments: Sequence[str]) -> Sweep:
        """The same under these settings, which go behind its own."""
        return replace(self, assignments=(*assignments, *self.assignments))


def run(sweep: Sweep, variants: Sequence[Variant]) -> Found:
    """All cells; the first of each seed goes alone, the others find what it has learnt.

    Raises ConfigError at wrong settings of any cell, before anything is run.
    """
    experiment, seeds, folder, jobs = sweep.experiment, sweep.seeds, sweep.folder, sweep.jobs
    for variant in variants:
        settings = {**sweep.settings, **variant.settings}
        loaded = config.load(experiment, settings)
        strategies.load(variant.strategy).check(variant.strategy, loaded, loaded.forget.scenario)
    total = sweep.before + len(seeds) * len(variants) + sweep.after
    spent, done, lock = list[float](), [""] * sweep.before, threading.Lock()

    def cell(seed: int, variant: Variant) -> dict[str, Any]:
        where = folder / f"seed-{seed}" / variant.folder
        started, again = time.monotonic(), " (was there)"
        if not (where / "results.json").is_file():
            again = ""
            shutil.rmtree(where, ignore_errors=True)
            where.parent.mkdir(parents=True, exist_ok=True)
            _run_cell(experiment, variant, seed, where, list(sweep.assignments), family)
        outcome = _outcome(where)
        with lock:
            done.append(where.name)
            spent.extend([] if again else [time.monotonic() - started])
            left = (total - len(done)) / jobs
            eta = f", ETA {mean(spent) * left / 60:.0f} min" if spent and left else ""
            sweep.say(f"[{len(done)}/{total}] seed {seed}, {variant.label}: {outcome.get('failed', 'done')}{again}{eta}")
        return outcome

    if not sweep.before:
        sweep.say(f"{total} cells, each a run of its own in {folder}")
    first = [(seed, variants[0]) for seed in seeds]
    rest = [(seed, variant) for seed in seeds for variant in variants[1:]]
    with (
        ThreadPoolExecutor(jobs) as pool,
        Family(lambda: "the same command goes on: finished cells are kept, others begin again") as family,
    ):
        outcomes = [cell(*c) for c in first]
        outcomes += pool.map(lambda c: cell(*c), rest)
    found: Found = {variant.label: {} for variant in variants}
    for (seed, variant), outcome in zip([*first, *rest], outcomes, strict=True):
        found[variant.label][seed] = outcome
    return found


def _run_cell(experiment: str, variant: Variant, seed: int, where: Path, assignments: list[str], family: Family) -> None:
    command = [sys.executable, "-m", "ease_flwr", "run", config.own.by_file(experiment), "--strategy", variant.strategy]
    command += ["--seed", str(seed), "--run-dir", str(where)]
    for setting in (*assignments, *(f"{k}={v}" for k, v in variant.settings.items())):
        command += ["--set", setting]
    log = where.with_name(f"{where.name}.log")
    log.unlink(missing_ok=True)
    family.run(command, log)


def _outcome(cell: Path) -> dict[str, Any]:
    if (cell / "results.json").is_file():
        return read_results(cell)
    try:
        return {"failed": f"failed: {json.loads((cell / 'state.json').read_text())['error']}"}
    except (OSError, ValueError, KeyError):
        return {"failed": f"failed, see {cell}.log"}


def finished(found: Found) -> list[dict[str, Any]]:
    """Results of all cells that did not fail."""
    return [r for by_seed in found.values() for r in by_seed.values() if "failed" not in r]


SHOWN = ("forget_exclusive", "forget_shared", "forget", "retain", "test")


def shown_sets(results: dict[str, Any]) -> list[str]:
    """Sets that a table shows: all of what is forgotten only where it is not split."""
    sets = [s for s in SHOWN if s in results["models"]["original"]]
    return [s for s in sets if s != "forget" or "forget_exclusive" not in sets]
