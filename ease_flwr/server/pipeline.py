"""The story of a run: a roll call, the steps of its queue one after the other, and what is said at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flwr.serverapp import Grid

from ease_flwr import data
from ease_flwr.config import ConfigError, Experiment
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.roll_call import roll_call
from ease_flwr.exchange.transport import Transport
from ease_flwr.server import admission, parties
from ease_flwr.server.conclusion import conclude
from ease_flwr.server.continuation import continuation
from ease_flwr.server.forget import forget
from ease_flwr.server.learn import learn
from ease_flwr.server.parties import RollCall
from ease_flwr.server.state import FederationState, Server
from ease_flwr.store import queue
from ease_flwr.store.queue import Step
from ease_flwr.store.run import Run

Phase = Callable[[Server, FederationState, Step, str], FederationState]
PHASES: dict[str, Phase] = {"learn": learn, "forget": forget, "continuation": continuation}


def run(grid: Grid, at_work: Run, experiment: Experiment) -> FederationState:
    """Do everything on the queue of a run, what is asked for in the meantime too, and judge the models."""
    server = call(grid, at_work, experiment)
    state, done = FederationState(server.model.initial), 0
    while done < len(steps := queue.read(at_work.folder)):
        server = counted(server, steps)
        state = PHASES[steps[done].kind](server, state, steps[done], queue.names(steps)[done])
        done += 1
    return conclude(server, state)


def call(grid: Grid, at_work: Run, experiment: Experiment) -> Server:
    """The roll call, before anything expensive. Raises FederationError, and ConfigError for a request that is refused."""
    at_work.event(f"run directory {at_work.folder}")
    world = data.load(experiment.data, experiment.seed)
    left = {client for _, request in queue.served(at_work.folder) for client in request.leaving}
    transport = Transport(grid)
    roster, said = roll_call(transport, experiment, world.clients, left)
    federation = Federation(transport, experiment, roster, at_work.event)
    sizes = ", ".join(f"{n} {roster.pairs[n]}" for n in sorted(roster.pairs))
    at_work.event(f"[roll call] pairs: {sizes}", roll_call={n: said[n].model_dump(mode="json") for n in sorted(said)})
    answers = ask_about(federation, at_work, queue.read(at_work.folder))

    from ease_flwr.model import adapters  # imports torch and open_clip: only now, with all clients there

    model = adapters.load(experiment.model, experiment.lora, experiment.seed)
    nbytes = (2 if experiment.federation.half else 4) * model.size
    at_work.event(f"[model] {model.size} adapter parameters, {nbytes} bytes a message")
    return Server(at_work, experiment, federation, answers, model)


def counted(server: Server, steps: list[Step]) -> Server:
    """The server with what the clients say of all requests on the queue; nobody is asked again where there is no new one."""
    if [r.id for r in queue.requests(steps)] == [r.id for r in server.roll_call.requests]:
        return server
    return replace(server, roll_call=ask_about(server.federation, server.run, steps))


def ask_about(federation: Federation, at_work: Run, steps: list[Step]) -> RollCall:
    """Ask every client how many of its pairs each request concerns, and withdraw requests that cannot be served.

    Raises ConfigError for the first of those; the run goes on without them when it is resumed. Raises FederationError where a
    client does not say what only it knows.
    """
    requests = queue.requests(steps)
    said, refused = federation.counted(tuple(r.forget_set for r in requests))
    served = [request for _, request in queue.served(at_work.folder)]
    departed = {client for request in served for client in request.leaving}
    answers = parties.counted({n: federation.pairs[n] for n in federation.clients}, requests, said, departed)
    done = {request.id for request in served}
    clients = data.load(federation.experiment.data, federation.experiment.seed).clients  # those that have left too
    reasons: dict[str, str] = {}
    for i, request in enumerate(requests):
        try:
            if request.id in done:
                continue
            if i in refused:
                raise ConfigError(refused[i])
            admission.check(request, federation.experiment, clients, requests[:i], at_work.folder)
            parties.check(request, answers)
        except ConfigError as error:
            reasons[request.id] = str(error)
    for id, why in reasons.items():
        queue.withdraw(at_work.folder, id)
        at_work.event(f"request {id} is refused and withdrawn: {why}", refused=id)
    if reasons:
        raise ConfigError(next(iter(reasons.values())))
    return answers
