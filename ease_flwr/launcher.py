"""What the commands of `ease` do: check what was typed, put it on a request queue, submit the app, and follow the run.

Everything is checked here, before anything is started, by the same functions that the server asks.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ease_flwr import config, data, strategies
from ease_flwr.audit import references as asking
from ease_flwr.audit.summary import current_audit, read_results, read_run_config
from ease_flwr.config import ConfigError, ForgetConfig, ForgetRequest
from ease_flwr.hosts import app, connected
from ease_flwr.hosts.link import read_state
from ease_flwr.hosts.simulation import Where, submit
from ease_flwr.model import checking
from ease_flwr.server import admission, phase, submission
from ease_flwr.store import queue
from ease_flwr.store.files import busy, claimed, default_folder, given_back, locked, write_json
from ease_flwr.store.layout import RunLayout
from ease_flwr.store.phases import check_function
from ease_flwr.store.queue import Step


@dataclass(frozen=True)
class NewRun:
    """A run as it was typed."""

    experiment: str = "personas"
    strategy: str = "ease"
    seed: int | None = None
    """None: the experiment's own."""
    folder: Path | None = None
    fresh: bool = False
    assignments: Sequence[str] = ()
    """key=value of the experiment."""
    until: str = ""
    """"learn" ends it when it has learnt."""


@dataclass(frozen=True)
class Ready:
    """A new run that has been checked, in a folder that is its own."""

    settings: dict[str, Any]
    """Its run config."""
    experiment: config.Experiment
    folder: Path


def run(new: NewRun, where: Where) -> int:
    """Run an experiment; the exit status is 0 when it finished. Raises ConfigError before anything is started."""
    return start(ready(new, where), where)


def start(run: Ready, where: Where) -> int:
    """Submit a run and follow it to its end; the exit status is 0 when it finished."""
    try:
        status = followed(run.settings, run.experiment, run.folder, where)
    finally:
        if not where.superlink:
            given_back(run.folder)  # where nothing was begun
    return pictured(run.folder, status, not where.superlink)


def followed(settings: dict[str, Any], experiment: config.Experiment, folder: Path, where: Where) -> int:
    """Submit a run and follow it to its end. Of a simulation that is stopped, what its processes said last is no reason."""
    try:
        return submit(settings, experiment, folder, where)
    except (SystemExit, KeyboardInterrupt):
        layout = RunLayout(folder)
        if not where.superlink and layout.experiment.is_file() and read_state(folder)["status"] != "finished":
            write_json(layout.state, {"status": "failed", "error": "it was stopped by whoever had started it"})
        raise


def ready(new: NewRun, where: Where) -> Ready:
    """A run as it was typed, checked. Raises ConfigError: then nothing was made."""
    checked, told = config.asked(new.experiment, new.assignments, new.seed)
    strategies.check_named(checked)
    submission.steps(checked, config.Submission(strategy=new.strategy))
    app.check()
    connected.check_place(checked, where.superlink)
    admission.check_names(checked.data.client_names, checked.data)
    if not where.superlink:  # the files of a deployed federation are on its server and hosts
        for remark in checking.check(checked):
            print(f"note: {remark}", flush=True)
    if not new.until and (note := misleading(checked, new.strategy)):
        print(f"note: {note}", flush=True)
    folder = Path(config.absolute(str(new.folder), "run-dir")) if new.folder else default_folder(checked, new.strategy)
    there = folder.is_dir() and any(folder.iterdir()) if where.superlink else not claimed(folder)
    if there:  # of a deployed federation its server makes it, perhaps as another user
        raise ConfigError(f"run-dir {folder} is not empty: choose another, or remove it")
    settings = {
        "experiment": new.experiment,
        "strategy": new.strategy,
        "run-dir": str(folder),
        "fresh": new.fresh,
        "seed": checked.seed,
        "set": {k: v for k, v in told.items() if k != "seed"},
        "own": config.own.spelled(config.parts(new.experiment)),
    }
    return Ready(settings | ({"until": new.until} if new.until else {}), checked, folder)


def pictured(run: Path, status: int, pictures: bool) -> int:
    """Write the report of a run that has ended well and has an audit. The exit status is as it was, whatever becomes of it.

    pictures: whether the run's pairs are on this machine; those of a deployed federation are on its hosts.
    """
    try:
        if status == 0 and current_audit(run, read_results(run))[0] is not None:
            from ease_flwr.audit import report

            print(f"report in {report.of_run(run, pictures)}", flush=True)
    except Exception as error:  # the run itself has ended well
        print(f"no report: {error}: `ease report {run}` tries again", flush=True)
    return status


def misleading(experiment: config.Experiment, strategy: str) -> str:
    """Why the numbers of a run will say little, "" where they may say much."""
    kind, learnt = strategies.load(strategy), experiment.learn.rounds
    rounds = kind.rounds_of(kind.check(strategy, experiment, experiment.forget.scenario), learnt)
    if strategy == "retrain" or rounds <= learnt:
        return ""
    return f"forgetting has {rounds} rounds after {learnt} of learning: it costs more than retraining, and teaches what is kept"


def resume(folder: Path, where: Where) -> int:
    """Do what is left of the request queue of a run; the exit status, as of `run`. Raises ConfigError at once."""
    folder = folder.absolute()
    layout = RunLayout(folder)
    settings = read_run_config(folder)
    experiment, _ = config.from_run_config(settings)
    connected.check_place(experiment, where.superlink)
    queue.read(folder)
    check_function(folder)
    if busy(layout.run_lock):
        print(f"{folder} is at work: waiting for its end; it may do this as well", flush=True)
    if where.quorum:
        settings["set"] = config.said(settings) | {"federation.quorum": str(where.quorum)}
    with locked(layout.run_lock, wait=True):
        if not queue.left_to_do(folder) and read_state(folder)["status"] == "finished":
            print(f"{folder}: everything on its request queue is done")
            return 0
        write_json(layout.state, {"status": "submitted", "error": ""})
    settings |= {"run-dir": str(folder), "resume": True}
    return pictured(folder, followed(settings, experiment, folder, where), not where.superlink)


@dataclass(frozen=True)
class Asked:
    """A request as it was typed."""

    forget: ForgetConfig
    strategy: str = "ease"
    assignments: Sequence[str] = ()
    """key=value of the strategy."""
    id: str = ""


def forget(folder: Path, asked: Asked, where: Where) -> int:
    """Put a request on the queue of a run that has learnt, and do it. Asked twice it is done once.

    Raises ConfigError for a request that cannot be served: the queue is as it was then. One that only the clients can refuse is
    set aside by the server, and the exit status is 1.
    """
    folder = folder.absolute()
    check_function(folder)
    experiment, submitted = config.from_run_config(read_run_config(folder))
    connected.check_place(experiment, where.superlink)
    own = experiment.strategy if asked.strategy == submitted.strategy else {}
    values = config.settings(asked.assignments, own)
    world = data.load(experiment.data, experiment.seed)
    (wanted,) = world.resolve(asked.forget).forget_sets()
    request = ForgetRequest.of(wanted, asked.strategy, values, asked.id)
    before = queue.requests(queue.read(folder))
    if not queue.asked_before(request, before):
        admission.check(request, experiment, world.clients, before, folder)
    if queue.append(folder, Step(kind="forget", request=request)):
        print(f"request {request.id}: on the queue of {folder}")
    else:
        (same,) = (r for r in queue.requests(queue.read(folder)) if r.id == request.id)  # perhaps just now, by another process
        print(f"request {request.id}: asked before, by strategy {same.strategy}: not asked again")
    return resume(folder, where)


def continue_training(folder: Path, rounds: int, where: Where) -> int:
    """Let those who stay go on learning for some rounds, under the lock. Raises ConfigError."""
    folder = folder.absolute()
    check_function(folder)
    experiment, _ = config.from_run_config(read_run_config(folder))
    connected.check_place(experiment, where.superlink)
    if not queue.requests(queue.read(folder)) and not experiment.data.joined:
        raise ConfigError(f"{folder}: nothing was forgotten there yet; learning before that is `learn.rounds` of the run")
    if not queue.append(folder, Step(kind="continuation", rounds=rounds)):
        print(f"a continuation of {queue.read(folder)[-1].rounds} rounds waits already: it is done now, and no other is queued")
    return resume(folder, where)


def withdraw(folder: Path, id: str) -> None:
    """Take a request back that is not done. Raises ConfigError."""
    folder = folder.absolute()
    layout = RunLayout(folder)
    queue.read(folder)

    def at_hand() -> str:
        if busy(layout.run_lock) and phase.at_hand(folder) == id:
            return f"request {id} is being served now: end that process first, then it can be taken back"
        return ""

    queue.set_aside(folder, id, queue.WITHDRAWN, at_hand)
    done = queue.names(queue.read(folder))
    if not busy(layout.run_lock) and layout.results.is_file() and read_results(folder).get("phases") == done:
        write_json(layout.state, {"status": "finished", "error": ""})  # what had failed is not asked any more


def join(folder: Path, name: str) -> None:
    """Let a new host take part in a run that has learnt, from its next rounds on. Raises ConfigError."""
    folder = folder.absolute()
    layout = RunLayout(folder)
    settings = read_run_config(folder)
    experiment, _ = config.from_run_config(settings)
    if not layout.done("learn"):
        raise ConfigError(f"{folder} has not learnt yet: `ease resume {folder}` first")
    if name in experiment.data.client_names:
        gone = name in {c for _, r in queue.served(folder) for c in r.leaving}
        raise ConfigError(
            f"{name} was forgotten by {folder}, for good: where it has agreed, a new run takes it (data.returned={name})"
            if gone
            else f"{name} takes part in {folder} already"
        )
    settings["set"] = config.said(settings) | {"data.joined": ",".join((*experiment.data.joined, name))}
    admission.check_names([name], config.from_run_config(settings)[0].data)
    with locked(layout.run_lock):
        write_json(layout.run_config, settings)


def audit(finished: Path, level: str, where: Where, references: int = 0) -> int:
    """Audit a finished run in its folder audit-LEVEL; the exit status, as of `run`. Raises ConfigError at once.

    references: retrainings that it is set beside, trained now where the run has fewer; 0 is two of a full audit, and those that
    there are of a quick one. A run without any is set beside strangers.
    """
    finished = finished.absolute()
    results = read_results(finished)
    settings = read_run_config(finished)
    experiment, _ = config.from_run_config(settings)
    connected.check_place(experiment, where.superlink)
    folder = finished / f"audit-{level}"
    if references and "retrain" not in results["adapters_sha256"]:
        raise ConfigError(
            f"--references {references}: {finished} has none: `ease reference {finished} --count {references}` trains them"
        )
    if busy(RunLayout(folder).run_lock):
        raise ConfigError(f"{folder} is in use by another process: wait until that audit has ended, or end it")
    if (folder / "state.json").is_file():  # an audit of before: the same question again replaces its answer
        shutil.rmtree(folder)
    wanted = references or max(experiment.evaluation.references, 2 if level == "full" else 1)
    more = {"evaluation.references": str(wanted)} | ({"federation.quorum": str(where.quorum)} if where.quorum else {})
    settings |= {"run-dir": str(folder), "audit": level, "set": config.said(settings) | more}
    return pictured(finished, followed(settings, experiment, folder, where), not where.superlink)


def reference(finished: Path, count: int, where: Where, dry: bool = False) -> int:
    """Learn again what a finished run knows, without all that it has forgotten; the exit status, as of `run`.

    count: retrainings in all; 0: as many as it has been asked for, or as its experiment says.  dry: only say what it costs.
    What is there is not trained again. Raises ConfigError at once.
    """
    folder = finished.absolute()
    check_function(folder)
    results, layout = read_results(folder), RunLayout(folder)
    asking.check(folder)
    experiment, _ = config.from_run_config(read_run_config(folder))
    asked, equal = asking.wanted(folder, experiment, count), experiment.evaluation.equal
    names = {t.model for t in asking.trainings(folder, asked, equal)}
    of = f"of {' and '.join(asked.requests)}"
    if names <= results["adapters_sha256"].keys():
        print(f"{folder} has its reference {of}: {', '.join(n for n in results['models'] if n in names)}; nothing to do")
        return 0
    clients = len(data.load(experiment.data, experiment.seed).clients)
    print(f"reference {of}: {asking.price(folder, asking.missing(folder, asked, equal), clients)}", flush=True)
    if dry:
        return 0
    connected.check_place(experiment, where.superlink)
    with locked(layout.run_lock):
        asking.write(folder, asked)
        write_json(layout.state, {"status": "submitted", "error": ""})
    return resume(folder, where)
