"""The built-in world at its smallest: three clients, a few rounds, seconds."""

from typing import Any

from ease_flwr.core import config

SMALL = {
    "data.clients": 3,
    "data.exclusive": 4,
    "data.shared": 3,
    "data.holders": 2,
    "data.strangers": 6,
    "data.exclusive_pairs": 16,
    "data.shared_pairs": 16,
    "data.scenes": 32,
    "data.test_repeats": 1,
    "data.holdout_repeats": 1,
    "data.test_scenes": 60,
    "learn.rounds": 14,
    "learn.batch": 48,
    "hold.rounds": 2,
    "hold.overlap": 4,
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
