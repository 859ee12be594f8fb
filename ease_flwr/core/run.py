"""The run directory: events, adapters, results, and the cache of phases that were computed before.

Everything is written atomically (a temporary name, then a rename), so a reader never meets half a file.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ease_flwr.core.config import ConfigError, Experiment, code_hash, digest
from ease_flwr.core.federation import Cost
from ease_flwr.core.history import History
from ease_flwr.core.paths import home
from ease_flwr.core.tracking import flat, tracker

if TYPE_CHECKING:
    from ease_flwr.core.lock import ForgetLock


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@dataclass
class PhaseResult:
    """Adapters at the end of a phase, what it cost, and the update history if it was recorded."""

    theta: NDArray[np.float32]
    cost: Cost
    history: History | None = None


class Run:
    """One run directory. Raises ConfigError when the folder already holds something."""

    def __init__(self, folder: Path, experiment: Experiment, strategy: str, fresh: bool = False) -> None:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"run-dir {folder} is not empty: choose another, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.experiment = experiment
        self.fresh = fresh
        self.started = time.monotonic()
        self.track = tracker(experiment, folder)
        self.tracked = 0
        self.write("experiment.json", {**experiment.model_dump(mode="json"), "strategy_name": strategy})
        self.state("running")

    def write(self, name: str, value: Any) -> None:
        """A JSON file of the run."""
        write_json(self.folder / name, value)

    def keep_lock(self, lock: ForgetLock) -> None:
        """lock.safetensors: what later rounds on this run's adapters may not move, with its rules (core/lock.py)."""
        from safetensors.torch import save_file as save_tensors

        partial = self.folder / "lock.partial"
        save_tensors(lock.tensors(), partial)
        partial.replace(self.folder / "lock.safetensors")

    def state(self, status: str, error: str = "") -> None:
        """running | finished | failed, with the reason in one line."""
        self.write("state.json", {"status": status, "error": error})

    def event(self, line: str, **values: Any) -> None:
        """One line for people (stdout and log.txt) and, with values, one for programs (metrics.jsonl)."""
        print(line, flush=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as f:
            f.write(line + "\n")
        if values:
            if self.track and "model" in values:
                self.tracked += 1
                self.track(self.tracked, {f"{values['model']}/{k}": v for k, v in flat(values).items()})
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as f:
                f.write(json.dumps({"elapsed": round(time.monotonic() - self.started, 2), **values}) + "\n")

    def cached(self, parts: tuple[Any, ...], compute: Callable[[Path], PhaseResult]) -> PhaseResult:
        """The phase that `parts` decide, from the cache or computed now (given a folder for its history) and kept."""
        key = digest(*parts, code_hash(*LEARNING_CODE))[:32]
        folder = home() / "cache" / key
        if (folder / "cost.json").is_file() and not self.fresh:
            cost = Cost(**json.loads((folder / "cost.json").read_text(encoding="utf-8")))
            theta = load_file(folder / "theta.safetensors")["theta"]
            self.event(f"from the cache: {cost.rounds} rounds ({folder})")
            return PhaseResult(theta, cost, History(folder / "history"))
        partial = home() / "cache" / f"{key}.partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        result = compute(partial / "history")
        save_file({"theta": result.theta}, partial / "theta.safetensors")
        write_json(partial / "cost.json", asdict(result.cost))
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        return PhaseResult(result.theta, result.cost, History(folder / "history"))


LEARNING_CODE = (
    "ease_flwr/core/adapters.py",
    "ease_flwr/core/backbone.py",
    "ease_flwr/core/history.py",
    "ease_flwr/core/messages.py",
    "ease_flwr/data/*.py",
    "clients/base.py",
    "clients/contrastive.py",
    "strategies/base.py",
)
"""What decides the outcome of a learn phase besides its settings; a change here makes cached phases stale."""
