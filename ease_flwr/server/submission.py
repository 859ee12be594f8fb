"""What a submission becomes: the request queue of a new run, and one line about what stopped it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ease_flwr import data
from ease_flwr.config import Experiment, ForgetRequest, Submission, decoded
from ease_flwr.server import admission
from ease_flwr.store import queue
from ease_flwr.store.queue import Step
from ease_flwr.store.run import Run


def begin(run: Run, experiment: Experiment, submitted: Submission, run_config: Mapping[str, Any]) -> None:
    """Write the run config and the queue of a new run. Raises ConfigError for a request that cannot be served."""
    run.write("run_config.json", decoded(run_config))
    run.learns_from(data.fingerprint(experiment))
    queue.write(run.folder, steps(experiment, submitted))


def steps(experiment: Experiment, submitted: Submission) -> list[Step]:
    """Learn, forget what the experiment names, and continue; or learn alone."""
    learn = [Step(kind="learn")]
    if submitted.until == "learn":
        return learn
    world = data.load(experiment.data, experiment.seed)
    asked = world.resolve(experiment.forget).forget_sets()
    requests = [ForgetRequest.of(a, submitted.strategy, experiment.strategy) for a in asked]
    admission.check_all(requests, experiment, world.clients, None)
    rounds = experiment.continuation.rounds
    more = [Step(kind="continuation", rounds=rounds)] if rounds else []
    return [*learn, *(Step(kind="forget", request=r) for r in requests), *more]


def reason(error: BaseException, folder: Path) -> str:
    """One line for state.json."""
    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if "No space left on device" in why:
        return f"the disk of {folder} is full: make room, then `ease resume {folder}`; nothing that was done is lost"
    return why
