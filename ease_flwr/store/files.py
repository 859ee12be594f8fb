"""Where runs and the cache live, and how files are written there. Without flwr and torch, so that the launcher is quick."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ease_flwr.config import ConfigError, Experiment

CLAIM = '{"status": "submitted", "error": ""}\n'
"""state.json of a new run that nobody has begun yet."""


def home() -> Path:
    """Where runs and the cache live: $EASE_FLWR_HOME, or ~/ease_flwr_runs. Raises ConfigError where nobody's home is known."""
    try:
        return Path(os.environ.get("EASE_FLWR_HOME") or "~/ease_flwr_runs").expanduser().absolute()
    except RuntimeError:
        raise ConfigError("this user has no home folder: set EASE_FLWR_HOME to the folder for runs") from None


def default_folder(experiment: Experiment, strategy: str) -> Path:
    """A new folder name for a run: what it is, when it began, and a number that no other of the same second has."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return home() / f"{experiment.name[:100]}-{strategy[:100]}-seed{experiment.seed}-{stamp}-{secrets.token_hex(3)}"


def claimed(folder: Path) -> bool:
    """Take the folder of a new run for one process alone, by a file that one of several can make: state.json.

    False where something is there, or another process was faster. Raises ConfigError where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if {p.name for p in folder.iterdir()} - {"run.lock"}:
            return False
        with (folder / "state.json").open("x", encoding="utf-8") as f:
            f.write(CLAIM)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}: choose another folder") from None
    return True


def only_claimed(folder: Path) -> bool:
    """Whether nothing is in a folder but what `claimed` has left, and perhaps a lock."""
    there = {p.name for p in folder.iterdir()}
    if there - {"state.json", "run.lock"}:
        return False
    return "state.json" not in there or (folder / "state.json").read_text(encoding="utf-8") == CLAIM


def given_back(folder: Path) -> None:
    """Leave the folder of a run that has not been started as it was."""
    if folder.is_dir() and only_claimed(folder):
        for name in ("state.json", "run.lock"):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def new_folder(folder: Path, why: str = "choose another, or remove it") -> None:
    """Make a folder, or take an empty one. Raises ConfigError where something is there, or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: {why}")
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}: choose another folder") from None


def unwritable(folder: Path) -> str:
    """Why nothing can be written in a folder, or it cannot be made; "" where it can. Leaves nothing behind."""
    there = folder
    try:
        while not os.path.lexists(there):
            there = there.parent
        with tempfile.TemporaryDirectory(prefix=".ease-", dir=there):
            return ""
    except OSError as error:
        what = f"{folder} cannot be written" if there == folder else f"{folder} cannot be made in {there}"
        return f"{what}: {error.strerror}"


def busy(file: Path) -> bool:
    """Whether another process has this lock, which may be another user's. Raises ConfigError where that cannot be known."""
    with suppress(FileNotFoundError, PermissionError), file.open(encoding="utf-8") as f:
        return not _taken(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return False


def read_object(path: Path, cure: str) -> dict[str, Any]:
    """A JSON object. Raises ConfigError where there is none, with what to do."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}: {cure}") from None
    return found


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
    try:
        f = file.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}: whoever works in this folder must be able to write there") from None
    with f:
        if not _taken(f, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise ConfigError(f"{file.parent} is in use by another process: wait until that has ended, or end it")
        yield


def _taken(file: TextIO, how: int) -> bool:
    """Whether a lock could be taken. Raises ConfigError where the file system knows no locks."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(f"{file.name} cannot be locked: {error.strerror}: choose a folder on another file system") from None
    return True
