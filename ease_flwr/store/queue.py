"""The request queue of a run: what it is to do, step by step. Learn, then whatever is asked of it.

queue.json lies in the run's folder. A request that arrives while the run is busy is appended, and handled when its turn comes.
One that is there already changes nothing. A step that is done stays: its result is in phases/. A request that cannot be served,
or is withdrawn, is set aside: it moves to set-aside.json with the reason, and the rest of the queue goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError, model_validator

from ease_flwr.config import ConfigError, ForgetRequest, Section
from ease_flwr.config.request import now
from ease_flwr.store.files import locked, write_json
from ease_flwr.store.layout import RunLayout, no_run

WITHDRAWN = "it was withdrawn"
"""Why `ease withdraw` sets a request aside."""


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
    except (FileNotFoundError, NotADirectoryError) as error:
        if not RunLayout(folder).is_run:
            raise no_run(folder) from None
        raise ConfigError(f"{file}: {error.strerror}: it is the request queue of the run, restore it") from None
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise ConfigError(f"{file}: not the request queue of a run: {' '.join(str(error).split())[:200]}") from None


def write(folder: Path, steps: Sequence[Step]) -> None:
    """Replace it, atomically."""
    write_json(RunLayout(folder).queue, [s.model_dump(mode="json", exclude_defaults=True) for s in steps])


def append(folder: Path, step: Step) -> bool:
    """Add a step; False where it is there already: a request that asks the same, or a continuation that has not begun.

    Raises ConfigError where another request has the same id.
    """
    with locked(RunLayout(folder).queue_lock, wait=True):
        steps = read(folder)
        if step.request and asked_before(step.request, requests(steps)):
            return False
        if step.kind == "continuation" and steps[-1].kind == step.kind and not RunLayout(folder).done(names(steps)[-1]):
            return False
        write(folder, [*steps, step])
        return True


def asked_before(request: ForgetRequest, before: Sequence[ForgetRequest]) -> bool:
    """Whether a request is among these. Raises ConfigError where its id is another's."""
    for other in before:
        if other.id == request.id:
            if (other.scenario, other.asks) != (request.scenario, request.asks):
                raise ConfigError(f"request {request.id} is there already and asks something else: give yours another --id")
            return True
    return False


class SetAside(Section):
    """A request that left the queue without being served."""

    request: ForgetRequest
    why: str
    at: str
    """UTC."""


def set_aside(folder: Path, id: str, why: str, unless: Callable[[], str] = str) -> None:
    """Take a request off the queue; what is done cannot be taken back. Raises ConfigError where none of this id waits.

    unless: asked while nobody else can change the queue, why it must stay; "" where it need not.
    """
    layout = RunLayout(folder)
    with locked(layout.queue_lock, wait=True):
        if stays := unless():
            raise ConfigError(stays)
        steps = read(folder)
        done = {name for name in names(steps) if layout.done(name)}
        found = {n: s.request for s, n in zip(steps, names(steps), strict=True) if s.request and s.request.id == id}
        earlier = [s.request for s in read_set_aside(folder) if s.request.id == id]
        if not found and earlier:  # whoever withdraws it has seen why
            found = {"": earlier[-1]}
        if not found:
            there = ", ".join(r.id for r in requests(steps)) or "none"
            raise ConfigError(f"{folder}: no request {id} on the queue: there are {there}")
        if set(found) & done:
            raise ConfigError(f"{folder}: request {id} is done, which cannot be taken back")
        (request,) = found.values()
        new = SetAside(request=request, why=why, at=now())
        write_json(layout.set_aside, [s.model_dump(mode="json") for s in (*read_set_aside(folder), new)])
        write(folder, [s for s in steps if s.request != request])


def read_set_aside(folder: Path) -> list[SetAside]:
    """Requests that were set aside and have not been asked again, each as it was last, in order. Raises ConfigError."""
    file = RunLayout(folder).set_aside
    try:
        found = [SetAside.model_validate_json(json.dumps(s)) for s in json.loads(file.read_text(encoding="utf-8"))]
        again = {r.id for r in requests(read(folder))}
        return [*{s.request.id: s for s in found if s.request.id not in again}.values()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise ConfigError(f"{file}: not what a run has set aside: {' '.join(str(error).split())[:200]}") from None


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
