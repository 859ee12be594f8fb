"""Where runs and the cache live. Apart from the rest, so that the launcher can ask without importing flwr."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ease_flwr.core.config import Experiment


def home() -> Path:
    """Where runs and the cache live: $EASE_FLWR_HOME, or ~/ease_flwr_runs."""
    return Path(os.environ.get("EASE_FLWR_HOME", "~/ease_flwr_runs")).expanduser().absolute()


def default_folder(experiment: Experiment, strategy: str) -> Path:
    """A new folder name for a run: what it is, and when it began."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return home() / f"{experiment.name}-{strategy}-seed{experiment.seed}-{stamp}"
