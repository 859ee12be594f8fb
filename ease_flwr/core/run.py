"""The run directory: events, phases, adapters, results; and the cache of phases that other runs have computed.

Everything is written atomically (a temporary name, then a rename), so a reader never meets half a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ease_flwr.core import agenda
from ease_flwr.core.config import ConfigError, Experiment, code_hash, digest
from ease_flwr.core.federation import Cost, Federation
from ease_flwr.core.history import History
from ease_flwr.core.journal import Journal
from ease_flwr.core.paths import home, locked, write_json
from ease_flwr.core.tracking import flat, tracker

if TYPE_CHECKING:
    from ease_flwr.core.lock import ForgetLock


@dataclass
class PhaseResult:
    """Adapters at the end of a phase, what it cost, the update history if it was recorded, the lock it left, and facts."""

    theta: NDArray[np.float32]
    cost: Cost
    history: History | None = None
    lock: ForgetLock | None = None
    facts: dict[str, Any] = field(default_factory=dict)


MAY_DIFFER = ("federation", "audit", "tracking")
"""Sections with which a run may be gone on otherwise: how clients are waited for and what is looked at, not what is learnt."""


class Run:
    """One run directory, in use by this process alone. Raises ConfigError where it cannot be used.

    resume: go on with a run that is there, begun with the same settings and, where a phase is unfinished, by the same code.
    """

    def __init__(self, folder: Path, experiment: Experiment, strategy: str, fresh: bool = False, resume: bool = False) -> None:
        if not resume and folder.exists() and any(p.name != "run.lock" for p in folder.iterdir()):
            raise ConfigError(f"run-dir {folder} is not empty: choose another, or remove it")
        if resume and not (folder / "experiment.json").is_file():
            raise ConfigError(f"run-dir {folder}: no run there to go on with")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.experiment = experiment
        self.fresh = fresh
        self.federation: Federation | None = None
        self.started = time.monotonic()
        self._in_use = locked(folder / "run.lock")
        self._in_use.__enter__()
        settings = {**experiment.model_dump(mode="json"), "strategy_name": strategy, "code": code_hash()}
        if resume:
            self._check_same(settings)
            self._untell()
        else:
            self.write("experiment.json", settings)
        self.track = tracker(experiment, folder)
        self.tracked = 0
        self.state("running")

    def _check_same(self, settings: dict[str, Any]) -> None:
        try:
            then = json.loads((self.folder / "experiment.json").read_text(encoding="utf-8"))
            code = then.pop("code")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{self.folder}/experiment.json: {error}: this run cannot be gone on with") from None
        now = {k: v for k, v in settings.items() if k != "code"}
        if differ := [k for k in now if k not in MAY_DIFFER and json.loads(json.dumps(now[k])) != then.get(k)]:
            raise ConfigError(
                f"{self.folder} was begun with another {differ[0]}: go on with the settings in its experiment.json"
            )
        if code != settings["code"] and any(self.folder.glob("journal/*/*.safetensors")):
            raise ConfigError(
                f"{self.folder}: a phase was begun by other code ({code[:12]}, this is {settings['code'][:12]}): finish it "
                f"with that version, or remove {self.folder}/journal to do the phase again"
            )

    def _untell(self) -> None:
        """Take back what was told of a phase that was left unfinished: it will be told again."""
        file = self.folder / "told.json"
        if not file.is_file():
            return
        told = json.loads(file.read_text(encoding="utf-8"))
        if not self.has(told.pop("phase")):
            for name, size in told.items():
                if (self.folder / name).is_file() and (self.folder / name).stat().st_size > size:
                    os.truncate(self.folder / name, size)

    def _mark(self, phase: str) -> None:
        """Note how much was told when a phase began."""
        files = [self.folder / name for name in ("log.txt", "metrics.jsonl")]
        self.write("told.json", {"phase": phase, **{f.name: f.stat().st_size if f.is_file() else 0 for f in files}})

    def close(self) -> None:
        """Let another process use the folder."""
        self._in_use.__exit__(None, None, None)

    def write(self, name: str, value: Any) -> None:
        """A JSON file of the run."""
        write_json(self.folder / name, value)

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

    def has(self, phase: str) -> bool:
        """Whether this phase is done."""
        return (self.folder / "phases" / phase / "phase.json").is_file()

    # ---- phases -------------------------------------------------------------------------------------------------------

    def phase(self, name: str, compute: Callable[[Path], PhaseResult], cached: tuple[Any, ...] = ()) -> PhaseResult:
        """A phase of this run by name: as it was done, or from the cache where it is decided by `cached` alone, or computed now
        (given a folder for its history), every exchange kept until it is complete."""
        folder = self.folder / "phases" / name
        if self.has(name):
            found = read_phase(folder)
            code = read_phase_file(folder)["code"]
            by = "" if code == code_hash() else f", by other code ({code[:12]})"
            self.event(f"[{name}] as it was done: {found.cost.rounds} rounds{by}")
            return found
        key = digest(*cached, code_hash(*LEARNING_CODE))[:32] if cached else ""
        kept = home() / "cache" / key
        if key and (kept / "phase.json").is_file() and not self.fresh:
            try:
                found = read_phase(kept)
                self.event(f"from the cache: {found.cost.rounds} rounds ({kept})")
                link(kept, folder)
                return found
            except ConfigError as error:
                self.event(f"[{name}] computed again, the cache is broken: {error}")
        partial, journal = self.folder / f"{name}.partial", self.folder / "journal" / name
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self._mark(name)
        if self.federation:
            self.federation.journal = Journal(journal)
            if exchanges := self.federation.journal.kept:
                self.event(f"[{name}] goes on after {exchanges} exchanges")
        result = compute(partial / "history")
        if self.federation:
            self.federation.journal = Journal()
        write_phase(partial, result, key)
        if key:
            shutil.rmtree(kept, ignore_errors=True)
            link(partial, kept)
        folder.parent.mkdir(exist_ok=True)
        partial.replace(folder)
        shutil.rmtree(journal, ignore_errors=True)
        return read_phase(folder)


def write_phase(folder: Path, result: PhaseResult, key: str = "") -> None:
    """A finished phase: theta.safetensors, history/, lock.safetensors, and phase.json with the sha256 of all of them."""
    save_file({"theta": result.theta}, folder / "theta.safetensors")
    if result.lock:
        from safetensors.torch import save_file as save_tensors

        save_tensors(result.lock.tensors(), folder / "lock.safetensors")
    files = {p.relative_to(folder).as_posix(): file_sha256(p) for p in sorted(folder.rglob("*.safetensors"))}
    content = {
        "at": agenda.now(),
        "code": code_hash(),
        "cost": asdict(result.cost),
        "facts": result.facts,
        "cache": key,
        "files": files,
    }
    write_phase_file(folder, content)


def write_phase_file(folder: Path, content: dict[str, Any]) -> None:
    """phase.json, with the sha256 of what it says."""
    write_json(folder / "phase.json", {**content, "sha256": digest(content)})


def read_phase(folder: Path) -> PhaseResult:
    """What `write_phase` has left; theta is empty where it was purged. Raises ConfigError where a file was changed since."""
    content = read_phase_file(folder)
    for name, expected in content["files"].items():
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / name} is missing: restore it")
        if file_sha256(folder / name) != expected:
            raise ConfigError(f"{folder / name}: its content does not fit its sha256, it was changed or cut: restore it")
    lock = None
    if "lock.safetensors" in content["files"]:
        from safetensors.torch import load_file as load_tensors

        from ease_flwr.core.lock import ForgetLock

        lock = ForgetLock.from_tensors(load_tensors(folder / "lock.safetensors"))
    here = "theta.safetensors" in content["files"]
    theta = load_file(folder / "theta.safetensors")["theta"] if here else np.zeros(0, np.float32)
    return PhaseResult(theta, Cost(**content["cost"]), History(folder / "history"), lock, content["facts"])


def read_phase_file(folder: Path) -> dict[str, Any]:
    """phase.json of a finished phase. Raises ConfigError."""
    try:
        content: dict[str, Any] = json.loads((folder / "phase.json").read_text(encoding="utf-8"))
        expected = content.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder}/phase.json: {error}: restore it") from None
    if digest(content) != expected:
        raise ConfigError(f"{folder}/phase.json: its content does not fit its sha256, it was changed or cut: restore it")
    return content


def file_sha256(file: Path) -> str:
    """64 hex digits."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def link(source: Path, target: Path) -> None:
    """The same folder at another place: files are linked where the file system can, else copied. It appears all at once."""
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)

    def put(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    shutil.copytree(source, partial, copy_function=put)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)


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
