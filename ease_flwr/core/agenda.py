"""What a run is to do, step by step, in its folder: learn, forget, hold, and whatever is asked of it later.

agenda.json is the queue of a standing federation. A request that arrives while the run is busy is appended and handled when its
turn comes; one whose id is there already changes nothing. Steps are never removed: what is done is in phases/.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ease_flwr.core.config import ConfigError, ForgetConfig, Section, digest
from ease_flwr.core.paths import locked


class Step(Section):
    """One phase of the agenda."""

    kind: Literal["learn", "forget", "hold"]
    id: str = ""
    """forget: names the request."""
    asked: str = ""
    """forget: when it was asked, UTC."""
    forget: ForgetConfig | None = None
    """forget: what."""
    strategy: str = ""
    """forget: by which method."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """forget: of the method, by name; they go before what the experiment says about it."""
    rounds: int = 0
    """hold: how many."""


def request(forget: ForgetConfig, strategy: str, settings: dict[str, Any], id: str = "") -> Step:
    """A request to forget. Without an id of its own it is named by what it asks, so asking twice is asking once."""
    name = id or digest(forget.described())[:12]
    return Step(kind="forget", id=name, asked=now(), forget=forget, strategy=strategy, settings=settings)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read(folder: Path) -> list[Step]:
    """The agenda of a run. Raises ConfigError."""
    file = folder / "agenda.json"
    try:
        return [Step.model_validate(step) for step in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise ConfigError(f"{file}: not the agenda of a run: {' '.join(str(error).split())[:200]}") from None


def write(folder: Path, steps: list[Step]) -> None:
    """Replace it, atomically."""
    file = folder / "agenda.json"
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps([s.model_dump(mode="json", exclude_defaults=True) for s in steps], indent=1) + "\n")
    partial.replace(file)


def append(folder: Path, step: Step) -> bool:
    """Add a step; False where its id is there already."""
    with locked(folder / "agenda.lock", wait=True):
        steps = read(folder)
        if step.id and step.id in {s.id for s in steps}:
            return False
        write(folder, [*steps, step])
        return True


def names(steps: list[Step]) -> list[str]:
    """Folders of their phases: learn, forget, forget-2, hold, ..."""
    counts: dict[str, int] = {}
    out = []
    for step in steps:
        counts[step.kind] = counts.get(step.kind, 0) + 1
        out.append(step.kind if counts[step.kind] == 1 else f"{step.kind}-{counts[step.kind]}")
    return out


def everything(steps: list[Step]) -> ForgetConfig | None:
    """All that these steps forget."""
    return ForgetConfig.together([s.forget for s in steps if s.forget])


def busy(file: Path) -> bool:
    """Whether another process has this lock."""
    try:
        with locked(file):
            return False
    except ConfigError:
        return True
