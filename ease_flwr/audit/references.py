"""References that a finished run is asked for: of which requests, what is missing of them, and what they will cost.

A run whose experiment has `evaluation.reference: none` gets one by `ease reference RUN`. What was asked lies in references.json
beside the queue, with the requests that were served then: the models are a reference for these together, and for no others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ease_flwr.config import ConfigError, Experiment, Section
from ease_flwr.store import phases, queue
from ease_flwr.store.files import write_json
from ease_flwr.store.layout import RunLayout


class Wanted(Section):
    """What `ease reference` has asked for."""

    requests: tuple[str, ...]
    """Ids of the requests that were served then, in order."""
    count: int = Field(ge=1)
    """Retrainings: *retrain*, *retrain_2*, ..."""
    continued: int = Field(0, ge=0)
    """Rounds of the continuation then, which the reference goes through too."""


@dataclass(frozen=True)
class Training:
    """A phase of a reference."""

    model: str
    phase: str
    rounds: int


def name_of(again: int) -> str:
    """What the model of a retraining is called: *retrain*, *retrain_2*, ..."""
    return "retrain" if again == 1 else f"retrain_{again}"


def phase_of(model: str, requests: Sequence[Any], continued: int = 0) -> str:
    """The phase that makes a reference, with the number of requests where several are done. continued: rounds of the
    continuation, of *retrain_continued*."""
    number = "" if len(requests) == 1 else f"-{len(requests)}"
    return f"{model}{number}" + (f"-{continued}" if continued else "")


def of_others(phase: str, results: dict[str, Any]) -> bool:
    """Whether a phase made a reference, and none of those that stand beside the models of results.json: other requests were
    done by then."""
    number = "" if len(results["requests"]) == 1 else f"-{len(results['requests'])}"
    ours = re.fullmatch(rf"retrain(_\d+|_equal)?{number}|retrain_continued{number}-\d+", phase)
    return phase.startswith("retrain") and not (ours and "retrain" in results["models"])


def read(run: Path) -> Wanted | None:
    """What was asked last, if anything was. Raises ConfigError."""
    file = RunLayout(run).references
    if not file.is_file():
        return None
    try:
        return Wanted.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"{file}: {why}: remove it, and ask again with `ease reference {run}`") from None


def write(run: Path, wanted: Wanted) -> None:
    """Note it."""
    write_json(RunLayout(run).references, wanted.model_dump(mode="json"))


def wanted(run: Path, experiment: Experiment, count: int = 0) -> Wanted:
    """References of all that a run has forgotten: as many as `count`, or as were asked for, or as its experiment says."""
    requests = tuple(request.id for _, request in queue.served(run))
    before = read(run)
    least = before.count if before and before.requests == requests else 1
    return Wanted(requests=requests, count=max(count or experiment.evaluation.references, least), continued=_rounds(run)[2])


def check(run: Path) -> None:
    """Raises ConfigError where nothing was forgotten, or something is left on the queue."""
    if left := queue.left_to_do(run):
        raise ConfigError(f"{run}: {left[0]} is not done: `ease resume {run}` first")
    if not queue.served(run):
        raise ConfigError(f"{run}: nothing was forgotten there yet, so nothing is to be learnt again without it")


def trainings(run: Path, asked: Wanted, equal: bool) -> list[Training]:
    """Every phase of what is asked for. equal: whether it goes on for as many rounds as the run has had."""
    learnt, unlearned, _ = _rounds(run)
    found = [(name_of(again), learnt, 0) for again in range(1, asked.count + 1)]
    found += [("retrain_equal", unlearned - learnt, 0)] if equal else []
    found += [("retrain_continued", asked.continued, asked.continued)] if equal and asked.continued else []
    return [Training(model, phase_of(model, asked.requests, continued), rounds) for model, rounds, continued in found]


def missing(run: Path, asked: Wanted, equal: bool) -> list[Training]:
    """Those of them that are not done."""
    return [t for t in trainings(run, asked, equal) if not RunLayout(run).done(t.phase)]


def _rounds(run: Path) -> tuple[int, int, int]:
    """Rounds of the learn phase, all until the last request was done, and those of the continuation since."""
    steps, layout = queue.read(run), RunLayout(run)
    learnt = unlearned = rounds = 0
    for name, step in zip(queue.names(steps), steps, strict=True):
        if not layout.done(name):
            break
        content = phases.read_file(layout.phase(name))
        rounds += step.rounds or int(content["facts"]["rounds"] if step.request else content["cost"]["rounds"])
        learnt = learnt or rounds
        unlearned = rounds if step.request else unlearned
    return learnt, unlearned, rounds - unlearned


def price(run: Path, asked: Sequence[Training], clients: int) -> str:
    """What these phases will cost, from what the learn phase has cost. clients: all of the experiment, those too that left."""
    layout = RunLayout(run)
    spent = phases.read_file(layout.phase("learn"))["cost"]
    gone = {c for phase, _ in queue.served(run) for c in phases.read_file(layout.phase(phase))["facts"]["departed"]}
    stay, rounds = clients - len(gone), sum(t.rounds for t in asked)
    times = rounds / max(1, spent["rounds"])
    steps, up, down = (times * stay / clients * spent[key] for key in ("client_steps", "uplink_bytes", "downlink_bytes"))
    minutes = times * (spent["seconds"] + spent["server_seconds"]) / 60
    time = f"{minutes / 60:,.1f} hours" if minutes > 90 else f"{minutes:.0f} minutes" if minutes > 1.5 else "a minute"
    each = ", ".join(f"{t.model} {t.rounds}" for t in asked)
    return (
        f"{_several(rounds, 'round')} ({each}) of {_several(stay, 'client')}, "
        f"about {steps:,.0f} client steps, {up / 1e6:,.1f} MB up, {down / 1e6:,.1f} MB down and {time}"
    )


def _several(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def offer(run: Path, experiment: Experiment, clients: int) -> str:
    """How a run without a reference gets one, and what that costs."""
    asked = wanted(run, experiment)
    cost = price(run, missing(run, asked, experiment.evaluation.equal), clients)
    return f"`ease reference RUN` trains one: {cost}."


def standing(run: Path, forgotten: Sequence[str]) -> str:
    """Why no reference stands beside the models of a run, and how it gets one. forgotten: ids of the requests they have."""
    get = "`ease reference RUN` trains one, and says before what it costs"
    before = read(run)
    if before is None or before.requests == tuple(forgotten):
        return f"No reference stands beside these models: {get}."
    theirs, ours = " and ".join(before.requests), " and ".join(forgotten)
    return f"The reference of this run was trained without what {theirs} asked, and is none for {ours}: {get}."
