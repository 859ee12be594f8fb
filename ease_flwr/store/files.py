"""Where runs and the cache live, and how files are written there. Without flwr and torch, so that the launcher is quick."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ease_flwr.config import ConfigError, Experiment


def home() -> Path:
    """Where runs and the cache live: $EASE_FLWR_HOME, or ~/ease_flwr_runs."""
    return Path(os.environ.get("EASE_FLWR_HOME", "~/ease_flwr_runs")).expanduser().absolute()


def default_folder(experiment: Experiment, strategy: str) -> Path:
    """A new folder name for a run: what it is, and when it began."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return home() / f"{experiment.name}-{strategy}-seed{experiment.seed}-{stamp}"


def new_folder(folder: Path, why: str = "choose another, or remove it") -> None:
    """Make a folder, or take an empty one. Raises ConfigError where something is there, or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: {why}")
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}: choose another folder") from None


def busy(file: Path) -> bool:
    """Whether another process has this lock."""
    try:
        with locked(file):
            return False
    except ConfigError:
        return True


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextmanager
def locked(file: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock that ends with the process, however that ends. Raises ConfigError where another process has it."""
    with file.open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{file.parent} is in use by another process: wait until that has ended, or end it") from None
        yield
