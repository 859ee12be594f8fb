"""Finished phases on disk, and the cache of those that other runs have computed.

A phase folder holds theta.safetensors, perhaps history/ and lock.safetensors, and phase.json with the sha256 of all of them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ease_flwr.config import ADAPTERS, ConfigError, code_hash, digest, file_sha256
from ease_flwr.config.request import now
from ease_flwr.store.cost import Cost
from ease_flwr.store.files import home, write_json

if TYPE_CHECKING:
    from ease_flwr.model.lock import ForgetLock
    from ease_flwr.store.history import History


@dataclass(frozen=True)
class PhaseResult:
    """What a phase has led to."""

    theta: NDArray[np.float32]
    """Adapters at its end, (p,); empty where they were purged."""
    cost: Cost
    forgotten: tuple[str, ...] = ()
    """Ids of the requests whose data these adapters have forgotten, or never saw."""
    history: History | None = None
    """The update history, if it was recorded."""
    lock: ForgetLock | None = None
    """The forget lock that it left."""
    facts: dict[str, Any] = field(default_factory=dict)
    failures: tuple[dict[str, Any], ...] = ()
    """Answers that did not come or were not fit to be used."""


def write(folder: Path, result: PhaseResult, key: str = "") -> None:
    """A finished phase. key: under which it is in the cache, or ""."""
    save_file({"theta": result.theta}, folder / "theta.safetensors")
    if result.lock:
        from safetensors.torch import save_file as save_tensors

        save_tensors(result.lock.tensors(), folder / "lock.safetensors")
    content = {
        "at": now(),
        "code": code_hash(),
        "adapters": ADAPTERS,
        "cost": asdict(result.cost),
        "facts": result.facts,
        "failures": list(result.failures),
        "forgotten": list(result.forgotten),
        "cache": key,
        "files": {p.relative_to(folder).as_posix(): file_sha256(p) for p in sorted(folder.rglob("*.safetensors"))},
    }
    write_file(folder, content)


def write_file(folder: Path, content: dict[str, Any]) -> None:
    """phase.json, with the sha256 of what it says."""
    write_json(folder / "phase.json", {**content, "sha256": digest(content)})


def read(folder: Path) -> PhaseResult:
    """What `write` has left. Raises ConfigError where a file was changed since."""
    content = read_file(folder)
    for name, expected in content["files"].items():
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / name} is missing: restore it")
        if file_sha256(folder / name) != expected:
            raise ConfigError(f"{folder / name}: its content does not fit its sha256, it was changed or cut: restore it")
    from ease_flwr.store.history import History

    here = "theta.safetensors" in content["files"]
    theta = load_file(folder / "theta.safetensors")["theta"] if here else np.zeros(0, np.float32)
    return PhaseResult(
        theta,
        Cost(**content["cost"]),
        tuple(content["forgotten"]),
        History(folder / "history"),
        _lock(folder) if "lock.safetensors" in content["files"] else None,
        content["facts"],
        tuple(content["failures"]),
    )


def _lock(folder: Path) -> ForgetLock:
    from safetensors.torch import load_file as load_tensors

    from ease_flwr.model.lock import ForgetLock

    return ForgetLock.from_tensors(load_tensors(folder / "lock.safetensors"))


def read_file(folder: Path) -> dict[str, Any]:
    """phase.json of a finished phase. Raises ConfigError."""
    try:
        content: dict[str, Any] = json.loads((folder / "phase.json").read_text(encoding="utf-8"))
        expected = content.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder}/phase.json: {error}: restore it") from None
    if digest(content) != expected:
        raise ConfigError(f"{folder}/phase.json: its content does not fit its sha256, it was changed or cut: restore it")
    return content


def check_function(run: Path) -> None:
    """Raises ConfigError where a run has learnt adapters that mean another function: it cannot go on under this one."""
    for file in sorted(run.glob("phases/*/phase.json")):
        if (found := read_file(file.parent).get("adapters", 1)) != ADAPTERS:
            raise ConfigError(
                f"{run}: {file.parent.name} was learnt with adapters of format {found}, this version has format {ADAPTERS}, "
                "another function (docs/upstream.md): go on with the version that began it, or begin a new run"
            )


def delete_files(folder: Path, names: list[str]) -> None:
    """Delete files of a finished phase, and let phase.json say so."""
    content = read_file(folder)
    content["purged"] = sorted({*content.get("purged", []), *names})
    content["files"] = {f: digest for f, digest in content["files"].items() if f not in names}
    write_file(folder, content)
    for name in names:
        (folder / name).unlink(missing_ok=True)
        if (folder / name).parent != folder and not any((folder / name).parent.iterdir()):
            (folder / name).parent.rmdir()


DAY = 24 * 3600.0

# ---- the cache -----------------------------------------------------------------------------------------------------------


def cached(key: str) -> Path:
    """Where a phase of this key is kept for other runs."""
    return home() / "cache" / key


def publish(folder: Path, key: str) -> str:
    """Keep a finished phase for other runs; why it cannot be kept, "" where it is.

    Several processes may do this at once, on several machines: a whole folder is renamed to its place, which a file system
    does once. The first is there to stay. No lock is needed, and none is taken.
    """
    place = cached(key)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in place.parent.glob("*.partial*"):  # by a process that was killed
            with suppress(FileNotFoundError):  # it is in its place by now
                if time.time() - left.stat().st_mtime > DAY:
                    shutil.rmtree(left, ignore_errors=True)
        draft = _copied(folder, place)
        try:
            if place.is_dir() and not _whole(place):
                place.rename(draft.with_name(f"{draft.name}-broken"))
            if not place.is_dir():
                draft.rename(place)
        except OSError:
            if not _whole(place):  # otherwise another process was faster
                raise
        finally:
            for left in (draft, draft.with_name(f"{draft.name}-broken")):
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        return f"{place}: {error.strerror or error}"
    return ""


def take(key: str, folder: Path) -> bool:
    """Put what the cache has under this key into a new folder, whole and checked; whether it has anything.

    Raises ConfigError where what it has is broken, or was taken away meanwhile.
    """
    place = cached(key)
    if not (place / "phase.json").is_file():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        draft = _copied(place, folder)
        try:
            read(draft)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:  # of several files too, as shutil says it
        raise ConfigError(f"{place}: {error.strerror or 'it was taken away'}") from None
    return True


def _copied(source: Path, beside: Path) -> Path:
    """A folder of its own beside a place, with what is in another one: files are linked where the file system can."""

    def put(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    draft = beside.with_name(f"{beside.name}-{secrets.token_hex(4)}.partial")
    try:
        shutil.copytree(source, draft, copy_function=put)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return draft


def _whole(place: Path) -> bool:
    """Whether every file of a phase is there, as its phase.json says."""
    try:
        read(place)
    except (ConfigError, OSError):
        return False
    return True
