"""The request queue of a run: what it is to do, step by step. Learn, then whatever is asked of it.

queue.json lies in the run's folder. A request that arrives while the run is busy is appended, and handled when its turn comes.
One whose id is there already changes nothing. A step that is done stays: its result is in phases/. A request that is refused is
withdrawn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError, model_validator

from ease_flwr.config import ConfigError, ForgetRequest, Section
from ease_flwr.store.files import locked, write_json
from ease_flwr.store.layout import RunLayout


class Step(Section):
    """One phase of a run."""

    kind: Literal["learn", "forget", "continuation"]
    request: ForgetRequest | None = None
    """forget: what is asked."""
    rounds: int = 0
    """continuation: how many."""

    @model_validator(mode="after")
    def _whole(self) -> Step:
        if (self.kind == "forget") != (self.request is not None) or (self.kind == "continuation") != (self.rounds > 0):
            raise ValueError(f"a {self.kind} step with request {self.request} and {self.rounds} rounds")
        return self


def read(folder: Path) -> list[Step]:
    """The queue of a run. Raises ConfigError."""
    file = RunLayout(folder).queue
    if not file.is_file() and (folder / "agenda.json").is_file():
        raise ConfigError(f"{folder}: a run of version 0.1, which this version cannot go on with: use that version for it")
    try:
        return [Step.model_validate(step) for step in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise ConfigError(f"{file}: not the request queue of a run: {' '.join(str(error).split())[:200]}") from None


def write(folder: Path, steps: Sequence[Step]) -> None:
    """Replace it, atomically."""
    write_json(RunLayout(folder).queue, [s.model_dump(mode="json", exclude_defaults=True) for s in steps])


def append(folder: Path, step: Step) -> bool:
    """Add a step; False where a request of its id is there already."""
    with locked(RunLayout(folder).queue_lock, wait=True):
        steps = read(folder)
        if step.request and step.request.id in {r.id for r in requests(steps)}:
            return False
        write(folder, [*steps, step])
        return True


def withdraw(folder: Path, id: str) -> None:
    """Take a request back that was refused; what is done cannot be taken back."""
    with locked(RunLayout(folder).queue_lock, wait=True):
        steps = read(folder)
        done = {name for name in names(steps) if RunLayout(folder).done(name)}
        write(folder, [s for s, n in zip(steps, names(steps), strict=True) if n in done or not s.request or s.request.id != id])


def names(steps: Sequence[Step]) -> list[str]:
    """Names of their phases: learn, forget, forget-2, continuation, ..."""
    counts: dict[str, int] = {}
    out = []
    for step in steps:
        counts[step.kind] = counts.get(step.kind, 0) + 1
        out.append(step.kind if counts[step.kind] == 1 else f"{step.kind}-{counts[step.kind]}")
    return out


def requests(steps: Sequence[Step]) -> list[ForgetRequest]:
    """The requests among these steps, in order."""
    return [s.request for s in steps if s.request]


def served(folder: Path) -> list[tuple[str, ForgetRequest]]:
    """Requests of a run that are done, in order, with their phases. Raises ConfigError."""
    steps, layout = read(folder), RunLayout(folder)
    return [(n, s.request) for n, s in zip(names(steps), steps, strict=True) if s.request and layout.done(n)]


def left_to_do(folder: Path) -> list[str]:
    """Phases of the queue that are not done."""
    return [name for name in names(read(folder)) if not RunLayout(folder).done(name)]
