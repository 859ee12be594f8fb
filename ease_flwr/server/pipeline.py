"""The story of a run: a roll call, the steps of its queue one after the other, and what is said at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

from flwr.serverapp import Grid

from ease_flwr import data
from ease_flwr.config import ConfigError, Experiment
from ease_flwr.exchange.transport import Transport
from ease_flwr.server import roster
from ease_flwr.server.conclusion import conclude, concluded
from ease_flwr.server.continuation import continuation
from ease_flwr.server.forget import NoHelpError, forget
from ease_flwr.server.learn import learn
from ease_flwr.server.phase import begun, give_up
from ease_flwr.server.state import FederationState, Server
from ease_flwr.store import queue
from ease_flwr.store.files import locked
from ease_flwr.store.queue import Step
from ease_flwr.store.run import Run

Phase = Callable[[Server, FederationState, Step, str], FederationState]
PHASES: dict[str, Phase] = {"learn": learn, "forget": forget, "continuation": continuation}


class SetAsideError(ConfigError):
    """A request was not served; nothing else is wrong with the run."""


def run(grid: Grid, at_work: Run, experiment: Experiment) -> FederationState:
    """Do everything on the queue of a run, what is asked for in the meantime too, and judge the models.

    A request that cannot be served is set aside, and the rest goes on. Raises SetAsideError at the end, where all is done.
    """
    server, aside = call(grid, at_work, experiment)
    state, done = FederationState(server.model.initial), 0
    while done < len(steps := queue.read(at_work.folder)):
        server, refused = counted(server, steps)
        aside += refused
        if refused:
            continue
        step, name = steps[done], queue.names(steps)[done]
        new = not at_work.layout.done(name)
        with locked(at_work.layout.queue_lock, wait=True):  # whoever withdraws it sees the mark, or we see that it is gone
            at = begun(server, state, name, step.request.id if step.request else "")
            if queue.read(at_work.folder)[done : done + 1] != [step]:
                continue
        try:
            state = PHASES[step.kind](at, state, step, name)
        except NoHelpError as error:
            give_up(server, name)
            aside += [roster.put_aside(at_work, error.request, str(error))]
            continue
        done += 1
        if step.request and new:
            roster.remember(server, state)
    if not aside or not concluded(at_work, experiment, steps):
        conclude(server, state)
    shutil.rmtree(at_work.folder / "journal", ignore_errors=True)  # of phases that nobody asks for any more
    if aside:
        raise SetAsideError(aside[0])
    return state


def call(grid: Grid, at_work: Run, experiment: Experiment) -> tuple[Server, list[str]]:
    """The roll call, before anything expensive, and why requests were set aside. Raises DataError and FederationError."""
    at_work.event(f"run directory {at_work.folder}")
    data.load(experiment.data, experiment.seed).prove(at_work.event)  # of hosts every one does so itself
    federation = roster.called(Transport(grid), at_work, experiment)
    federation, answers, aside = roster.ask_about(federation, at_work, queue.read(at_work.folder))

    from ease_flwr.model import adapters  # imports torch and open_clip: only now, with all clients there

    model = adapters.load(experiment.model, experiment.lora, experiment.seed)
    nbytes = (2 if experiment.federation.half else 4) * model.size
    at_work.event(f"[model] {model.size} adapter parameters, {nbytes} bytes a message")
    return Server(at_work, experiment, federation, answers, model), aside


def counted(server: Server, steps: list[Step]) -> tuple[Server, list[str]]:
    """The server with what the clients say of all requests on the queue, and why some were set aside; nobody is asked again
    where there is no new one."""
    if [r.id for r in queue.requests(steps)] == [r.id for r in server.roll_call.requests]:
        return server, []
    federation, answers, aside = roster.ask_about(server.federation, server.run, steps)
    return replace(server, federation=federation, roll_call=answers), aside
