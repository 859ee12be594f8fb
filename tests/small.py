"""The built-in world at its smallest: three clients, a few rounds, seconds."""

import json
from pathlib import Path
from typing import Any

from ease_flwr import config

SMALL = {
    "data.clients": 3,
    "data.exclusive": 4,
    "data.shared": 3,
    "data.sharers": 2,
    "data.strangers": 6,
    "data.exclusive_pairs": 16,
    "data.shared_pairs": 16,
    "data.scenes": 32,
    "data.test_repeats": 1,
    "data.forget_unseen_repeats": 1,
    "data.test_scenes": 60,
    "learn.rounds": 14,
    "learn.batch": 48,
    "continuation.rounds": 2,
    "continuation.overlap": 4,
    "strategy.rounds": 3,
    "evaluation.every": 0,
    "audit.level": "none",
}

RUN_CONFIG: dict[str, Any] = {
    "experiment": "personas",
    "strategy": "ease",
    "seed": 0,
    "run-dir": "",
    "fresh": False,
    "set": " ".join(f"{k}={v}" for k, v in SMALL.items()),
    "data.root": "",
    "model.weights": "",
    "forget.targets": "",
}


def small_experiment(**changes: Any) -> config.Experiment:
    return config.load("personas", {**SMALL, **changes})


TINY: dict[str, Any] = {
    **SMALL,
    "learn.rounds": 4,
    "strategy.rounds": 2,
    "continuation.rounds": 2,
    "learn.batch": 64,
    "data.scenes": 16,
    "data.test_scenes": 16,
    "data.unseen": 16,
    "evaluation.reference": "none",
    "strategy.bke.enabled": "true",
    "strategy.lock.strength": 20,
}
"""Smaller still: what happens is looked at, not how well."""


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The run config of a tiny run."""
    return {**RUN_CONFIG, "run-dir": str(folder), "set": " ".join(f"{k}={v}" for k, v in (TINY | changes).items())}


def plain(run_config: dict[str, Any], strategy: str = "finetune") -> dict[str, Any]:
    """The same by a method that has none of EASE's parts."""
    kept = [part for part in run_config["set"].split() if not part.startswith(("strategy.bke", "strategy.lock"))]
    return {**run_config, "strategy": strategy, "set": " ".join(kept)}


def hashes(folder: Path) -> dict[str, str]:
    """Digests of the models of a finished run."""
    found: dict[str, str] = json.loads((folder / "results.json").read_text())["adapters_sha256"]
    return found
