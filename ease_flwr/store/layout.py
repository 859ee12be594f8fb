"""Where everything of a run lies: each kind of file once, with what it derives from and what is done with it.

Purge, receipt and verify walk over the folder through this table, resume and report find their files by it. A file that no
entry describes is *unknown*: purge and verify name it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ease_flwr.config import ConfigError, meant

Knows = Literal["nothing", "request", "numbers", "pairs", "phase", "lock", "updates", "model", "everything"]
"""What a file can tell about data that were asked to be forgotten.

nothing: settings, digests, locks of processes.  request: what was asked, in words.  numbers: counts and statistics.  pairs:
scores of single pairs.  phase: adapters, from all data that its phase had not forgotten yet.  lock: directions of what was
forgotten.  updates: what one client contributed.  model: adapters, as their provenance says.  everything: anything in the run.
"""
Resume = Literal["", "reads", "cuts", "removes"]
"""What `ease resume` does with a file: nothing, read it, cut it back to where the unfinished phase began, or remove it."""


@dataclass(frozen=True)
class Kind:
    """One kind of file. path: below the run's folder; {name} stands for one part of a path, {rest} for any."""

    path: str
    what: str
    knows: Knows
    sealed: bool = False
    """Whether a receipt pins its sha256."""
    resume: Resume = ""
    report: bool = False
    """Whether `ease report` reads it."""
    pattern: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = re.split(r"(\{\w+\})", self.path)
        regex = "".join(
            (f"(?P<{p[1:-1]}>.+)" if p == "{rest}" else f"(?P<{p[1:-1]}>[^/]+)") if p.startswith("{") else re.escape(p)
            for p in parts
        )
        object.__setattr__(self, "pattern", re.compile(regex))


KINDS = (
    Kind("experiment.json", "settings and code that it was begun with", "request", sealed=True, resume="reads", report=True),
    Kind("run_config.json", "the run config of Flower that it was submitted with", "request", resume="reads", report=True),
    Kind("queue.json", "the request queue", "request", sealed=True, resume="reads", report=True),
    Kind("set-aside.json", "requests that were set aside, with the reasons", "request", sealed=True),
    Kind("clients.json", "who was there, and with which data", "nothing"),
    Kind("references.json", "references that were asked for, and of which requests", "request", sealed=True, resume="reads"),
    Kind("state.json", "running, finished or failed, with the reason", "nothing", resume="reads"),
    Kind("mark.json", "how much had been logged when the phase at hand began", "request", resume="reads"),
    Kind("log.txt", "what happened, for people", "numbers"),
    Kind("metrics.jsonl", "what happened, for programs", "numbers", resume="cuts", report=True),
    Kind("results.json", "every number", "numbers", sealed=True, report=True),
    Kind("table.md", "recall of every model", "numbers"),
    Kind("audit.json", "the audit at the end of the run", "pairs", sealed=True, report=True),
    Kind("audit.md", "its verdict", "numbers"),
    Kind("audit-{level}/audit.json", "an audit that was asked later", "pairs", sealed=True, report=True),
    Kind("audit-{level}/{file}", "its run: log, settings, state", "numbers"),
    Kind("audit-{level}/{rest}", "answers of an audit that was not finished, and further retrainings", "everything"),
    Kind("ulira.json", "the U-LiRA attack", "numbers", sealed=True, report=True),
    Kind("ulira.md", "its verdict", "numbers"),
    Kind("shadows/{rest}", "shadow federations of the U-LiRA attack", "everything"),
    Kind("report.html", "a report, with pictures", "everything"),
    Kind("figures/{file}", "figures of the report and their data", "everything"),
    Kind("tensorboard/{file}", "numbers for TensorBoard", "numbers"),
    Kind("phases/{phase}/phase.json", "what a phase was and cost, with digests", "numbers", sealed=True, resume="reads"),
    Kind("phases/{phase}/theta.safetensors", "adapters after a phase", "phase", sealed=True, resume="reads"),
    Kind("phases/{phase}/lock.safetensors", "the forget lock after a phase", "lock", sealed=True, resume="reads"),
    Kind("phases/{phase}/history/{client}/{file}", "a client's updates", "updates", resume="reads"),
    Kind("adapters/{model}/{file}", "a model as a PEFT folder", "model", sealed=True, report=True),
    Kind("journal/{phase}/{file}", "answers of the phase at hand", "everything", resume="reads"),
    Kind("{phase}.partial/{rest}", "a phase that is being written", "everything", resume="removes"),
    Kind("purge.json", "what was purged", "nothing", sealed=True),
    Kind("receipts/{file}", "receipts, signed", "nothing"),
    Kind("receipt.json", "the last receipt", "nothing"),
    Kind("ledger.jsonl", "the chain of receipts", "nothing"),
    Kind("receipt-salt", "by which the owner shows which pairs a receipt means", "request"),
    Kind("run.lock", "held by the process at work", "nothing"),
    Kind("queue.lock", "held while the queue is changed", "nothing"),
    Kind("{rest}.partial", "a file that was being written", "everything", resume="removes"),
)
"""Every kind of file that a run can leave. A path belongs to the first kind that describes it."""


@dataclass(frozen=True)
class Artefact:
    """A file of a run, with its kind (None where no kind describes it) and the names in its path."""

    path: Path
    name: str
    """Relative to the run."""
    kind: Kind | None
    names: dict[str, str]


@dataclass(frozen=True)
class RunLayout:
    """The folder of one run."""

    folder: Path

    # ---- where single files are ----------------------------------------------------------------------------------------------

    @property
    def queue(self) -> Path:
        return self.folder / "queue.json"

    @property
    def set_aside(self) -> Path:
        return self.folder / "set-aside.json"

    @property
    def clients(self) -> Path:
        return self.folder / "clients.json"

    @property
    def queue_lock(self) -> Path:
        return self.folder / "queue.lock"

    @property
    def references(self) -> Path:
        return self.folder / "references.json"

    @property
    def run_lock(self) -> Path:
        return self.folder / "run.lock"

    @property
    def experiment(self) -> Path:
        return self.folder / "experiment.json"

    @property
    def run_config(self) -> Path:
        return self.folder / "run_config.json"

    @property
    def state(self) -> Path:
        return self.folder / "state.json"

    @property
    def mark(self) -> Path:
        return self.folder / "mark.json"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def results(self) -> Path:
        return self.folder / "results.json"

    @property
    def table(self) -> Path:
        return self.folder / "table.md"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def purge(self) -> Path:
        return self.folder / "purge.json"

    @property
    def adapters(self) -> Path:
        return self.folder / "adapters"

    def phase(self, name: str) -> Path:
        """Folder of a finished phase."""
        return self.folder / "phases" / name

    def partial(self, name: str) -> Path:
        """Folder of a phase that is being written."""
        return self.folder / f"{name}.partial"

    def journal(self, phase: str) -> Path:
        """Folder of the answers of a phase that is not finished."""
        return self.folder / "journal" / phase

    def audits(self) -> list[Path]:
        """The audits that are there: the one of the run itself, and those that were asked later."""
        found = [self.folder / "audit.json", *sorted(self.folder.glob("audit-*/audit.json"))]
        return [f for f in found if f.is_file()]

    @property
    def is_run(self) -> bool:
        """Whether there is a run, or was one."""
        with suppress(OSError):  # of a name that is too long
            return any(f.is_file() for f in (self.experiment, self.run_config, self.queue, self.results))
        return False

    def done(self, phase: str) -> bool:
        """Whether a phase is finished."""
        return (self.phase(phase) / "phase.json").is_file()

    # ---- all of them ---------------------------------------------------------------------------------------------------------

    def artefacts(self) -> Iterator[Artefact]:
        """Every file of the run, in order of its name."""
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file() or p.is_symlink()):
            name = path.relative_to(self.folder).as_posix()
            kind, names = described(name)
            yield Artefact(path, name, kind, names)

    def sealed(self) -> list[str]:
        """Files that a receipt pins, relative to the run."""
        return [a.name for a in self.artefacts() if a.kind and a.kind.sealed]

    def unknown(self) -> list[str]:
        """Files that no kind describes."""
        return [a.name for a in self.artefacts() if a.kind is None]


def no_run(folder: Path) -> ConfigError:
    """What is said of a folder in which there is no run, with the name of the run beside it that was perhaps meant."""
    runs = [p.parent.name for p in folder.parent.glob("*/experiment.json")]
    near = meant(folder.name, runs, f"{folder.parent}/")
    return ConfigError(f"{folder}: no run there: give the folder of one{near}")


def described(name: str) -> tuple[Kind | None, dict[str, str]]:
    """The kind of a path below a run, and the names in it."""
    for kind in KINDS:
        if found := kind.pattern.fullmatch(name):
            return kind, found.groupdict()
    return None, {}
