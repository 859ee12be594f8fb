"""The engine: cells are ordinary `ease run`s in folders of their own, from the same learnt federation.

Finished cells are not run again, those that were begun go on, failed ones are shown with their reason and do not stop the rest;
learn phases and references come from the cache after the first cell of a seed. A cell is known by its settings, its data and
the code that ran it: what was run with others is never taken for it.
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
from typing import Any, Literal

from ease_flwr import config, data, strategies
from ease_flwr.audit.summary import read_results
from ease_flwr.hosts import app
from ease_flwr.hosts.processes import Family
from ease_flwr.store.files import locked

Found = dict[str, dict[int, dict[str, Any]]]
"""Label of a variant -> seed -> results.json, or {"failed": reason}."""
Standing = Literal["finished", "begun", "nothing"]


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
    def loaded(self) -> config.Experiment:
        """The experiment of all cells. Raises ConfigError."""
        return config.asked(self.experiment, self.assignments)[0]

    def asked(self, variant: Variant) -> tuple[config.Experiment, list[str]]:
        """The experiment of a variant's cells, seed apart, and key=value of it, with absolute paths. Raises ConfigError."""
        own = [f"{key}={config.spelled(value)}" for key, value in variant.settings.items()]
        loaded, told = config.asked(self.experiment, [*self.assignments, *own])
        if "seed" in told:
            raise config.ConfigError(f"seed={told['seed']}: a comparison, ablation or search says its seeds by --seeds")
        return loaded, [f"{key}={value}" for key, value in told.items()]

    def under(self, assignments: Sequence[str]) -> Sweep:
        """The same under these settings, which go behind its own."""
        return replace(self, assignments=(*assignments, *self.assignments))


def run(sweep: Sweep, variants: Sequence[Variant]) -> Found:
    """All cells; the first of each seed goes alone, the others find what it has learnt.

    Raises ConfigError before anything is run: at wrong settings of any cell, and where one is there that was run with other
    settings, on other data or by other code.
    """
    seeds, folder, jobs = sweep.seeds, sweep.folder, sweep.jobs
    there: dict[Path, Standing] = {}
    labels: dict[str, str] = {}
    for variant in variants:
        if (other := labels.setdefault(variant.folder, variant.label)) != variant.label:
            raise config.ConfigError(
                f"{other!r} and {variant.label!r} would share the folder {variant.folder}: name one otherwise"
            )
        loaded, _ = sweep.asked(variant)
        strategies.check_named(loaded)
        strategies.load(variant.strategy).check(variant.strategy, loaded, loaded.forget.scenario)
        for seed in seeds:
            where = folder / f"seed-{seed}" / variant.folder
            there[where] = standing(where, loaded.model_copy(update={"seed": seed}), variant.strategy)
    total = sweep.before + len(seeds) * len(variants) + sweep.after
    spent, done, lock = list[float](), [""] * sweep.before, threading.Lock()

    def cell(seed: int, variant: Variant) -> dict[str, Any]:
        where = folder / f"seed-{seed}" / variant.folder
        started, again = time.monotonic(), " (was there)"
        if there[where] != "finished":
            again = ""
            if there[where] == "nothing":
                shutil.rmtree(where, ignore_errors=True)
                where.parent.mkdir(parents=True, exist_ok=True)
            _run_cell(sweep, variant, seed, where, family)
        outcome = _outcome(where)
        with lock:
            done.append(where.name)
            spent.extend([] if again else [time.monotonic() - started])
            left = (total - len(done)) / jobs
            eta = f", ETA {mean(spent) * left / 60:.0f} min" if spent and left else ""
            sweep.say(f"[{len(done)}/{total}] seed {seed}, {variant.label}: {outcome.get('failed', 'done')}{again}{eta}")
        return outcome

    folder.mkdir(parents=True, exist_ok=True)
    if not sweep.before:
        sweep.say(f"{total} cells, each a run of its own in {folder}")
    first = [(seed, variants[0]) for seed in seeds]
    rest = [(seed, variant) for seed in seeds for variant in variants[1:]]
    with (
        locked(folder / "cells.lock"),
        ThreadPoolExecutor(jobs) as pool,
        Family(lambda: "the same command goes on, with finished cells and with those that were begun") as family,
    ):
        outcomes = [cell(*c) for c in first]
        outcomes += pool.map(lambda c: cell(*c), rest)
    found: Found = {variant.label: {} for variant in variants}
    for (seed, variant), outcome in zip([*first, *rest], outcomes, strict=True):
        found[variant.label][seed] = outcome
    return found


def standing(cell: Path, asked: config.Experiment, strategy: str) -> Standing:
    """What is there of a cell that is asked for: it is finished, begun, or nothing of it can be used.

    Raises ConfigError where something was run there that is not what is asked now; it names the first difference.
    """
    ended = (cell / "results.json").is_file()
    if not ended and not all((cell / name).is_file() for name in ("run_config.json", "queue.json", "experiment.json")):
        return "nothing"
    if other := differs(cell, asked, strategy):
        if not ended:
            return "nothing"
        raise config.ConfigError(f"{cell} was run with {other}: give another --folder, or remove this one to run it again")
    return "finished" if ended else "begun"


def differs(cell: Path, asked: config.Experiment, strategy: str) -> str:
    """In what the run in a folder is another one than what is asked: settings, code or data; "" where it is the same."""
    try:
        then = json.loads((cell / "experiment.json").read_text(encoding="utf-8"))
        by, code, files = then.pop("strategy_name"), then.pop("code"), then.pop("files", "")
        before = _decided(config.Experiment.model_validate(then))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return f"settings that are not known ({' '.join(str(error).split())[:200]})"
    after = _decided(asked)
    for key in (k for k in after if after[k] != before[k]):
        return f"{key}={config.spelled(before[key])}, and {config.spelled(after[key])} is asked"
    if by != strategy:
        return f"strategy {by}, and {strategy} is asked"
    if code != (here := config.code_hash(app.own_halves([strategy]))):
        return f"code {code[:12]}, and this is {here[:12]}"
    return "" if files == data.fingerprint(asked) else "other pairs or weights in the same files"


def _decided(experiment: config.Experiment) -> dict[str, Any]:
    """The settings that decide results: what is learnt, what comes later, and what is looked at."""
    audit = {k: v for k, v in config.chosen(experiment, "nothing").items() if k.startswith("audit.")}
    return config.chosen(experiment, "learning", "later") | audit


def _run_cell(sweep: Sweep, variant: Variant, seed: int, where: Path, family: Family) -> None:
    """Run a cell, or go on with what is there of it."""
    command = [sys.executable, "-m", "ease_flwr"]
    if where.is_dir():
        command += ["resume", str(where)]
    else:
        command += ["run", config.own.by_file(sweep.experiment), "--strategy", variant.strategy]
        command += ["--seed", str(seed), "--run-dir", str(where)]
        for setting in sweep.asked(variant)[1]:
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


def gaps(runs: Sequence[dict[str, Any]], name: str) -> list[float]:
    """A gap to the retrained reference, of the runs that have it."""
    return [gap for r in runs if (gap := r["gaps"].get(name)) is not None]


SHOWN = ("forget_exclusive", "forget_shared", "forget", "retain", "test")


def shown_sets(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Sets that a table shows: those that every run judges, and all of what is forgotten only where it is not split."""
    sets = [s for s in SHOWN if all(s in r["models"]["original"] for r in runs)]
    return [s for s in sets if s != "forget" or "forget_exclusive" not in sets]


def left_out(runs: Sequence[dict[str, Any]]) -> list[str]:
    """A line about sets that only some runs judge: one seed may split what is forgotten, another not. None where all do."""
    some = [s for s in SHOWN if 0 < sum(s in r["models"]["original"] for r in runs) < len(runs)]
    return [f"- left out, since not every cell judges it: {', '.join(some)}"] if some else []
