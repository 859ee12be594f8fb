"""Who takes part in a run now: the roll call, what clients say about the requests, what is remembered of those who left."""

from __future__ import annotations

from typing import Any

from ease_flwr import data
from ease_flwr.config import ConfigError, Experiment
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.roll_call import Called, Wanted, enough, roll_call
from ease_flwr.exchange.transport import FederationError, Transport
from ease_flwr.server import admission, parties
from ease_flwr.server.parties import RollCall
from ease_flwr.server.state import FederationState, Server
from ease_flwr.store import clients, queue
from ease_flwr.store import names as keys
from ease_flwr.store.files import home
from ease_flwr.store.queue import Step
from ease_flwr.store.run import Run
from ease_flwr.store.tombstones import Tombstones


def wanted(at_work: Run, experiment: Experiment) -> Wanted:
    """Who may come, and who must: nobody who has left, or whose leaving is asked for."""
    names = data.load(experiment.data, experiment.seed).clients
    leaving = frozenset(c for r in queue.requests(queue.read(at_work.folder)) for c in r.leaving)
    if experiment.data.kind != "folder":
        return Wanted(names, leaving)
    gone = {name: about for name, about in Tombstones(home()).read().clients.items() if name not in experiment.data.returned}
    buried = {key: name for name, about in gone.items() for key in about.keys}
    others = {n: admission.back(n, about) for n, about in gone.items() if about.run != str(at_work.folder)}
    return Wanted(names, leaving, buried, others, keys.known())


def called(transport: Transport, at_work: Run, experiment: Experiment) -> Federation:
    """The clients that are there. Who is not is named. Raises FederationError below the quorum."""
    asked = wanted(at_work, experiment)
    found = roll_call(transport, experiment, asked)
    sizes = ", ".join(f"{n} {found.roster.pairs[n]}" for n in sorted(found.roster.pairs))
    at_work.event(
        f"[roll call] pairs: {sizes}", roll_call={n: s.model_dump(mode="json") for n, s in sorted(found.said.items())}
    )
    say_missing(at_work, found)
    for name in keys.bind({n: node.key for n, node in found.nodes.items()}) if experiment.data.kind == "folder" else ():
        at_work.event(f"[roll call] {name} has another key than before: it was registered anew under its name")
    for line in clients.note(at_work.folder, _noted(found)):
        at_work.event(f"[roll call] {line}")
    return Federation(transport, experiment, found.roster, at_work.event, optional=asked.departed, expected=len(asked.expected))


def say_missing(at_work: Run, found: Called) -> None:
    """Who is not there, and who is and takes no part."""
    for name, why in found.missing.items():
        at_work.event(f"[roll call] {name} takes no part now: {why}")
    for line in found.strange:
        at_work.event(f"[roll call] left out, {line}")


def _say_heavy(at_work: Run, federation: Federation) -> None:
    """Who says that it has so much more than the others that only a part of it counts."""
    most, times = federation.most, federation.experiment.federation.weight_bound
    for name in (n for n in federation.clients if federation.pairs[n] > most):
        at_work.event(
            f"[roll call] {name} says that it has {federation.pairs[name]} pairs: they weigh as {most}, {times:g} times the "
            "median (federation.weight_bound)"
        )


def _noted(found: Called) -> dict[str, dict[str, Any]]:
    """What clients.json keeps of a roll call."""
    out = {}
    for name, said in found.said.items():
        about: dict[str, Any] = {"pairs": said.pairs, "data": said.data, "code": said.code, "base": said.base}
        out[name] = {**about, "node": str(found.roster.nodes[name]), "key": found.nodes[name].key}
    return out


def ask_about(federation: Federation, at_work: Run, steps: list[Step]) -> tuple[Federation, RollCall, list[str]]:
    """Ask every client how many of its pairs each request concerns, and set aside requests that cannot be served.

    Returns the clients that answer, what they said of the requests that are left, and why others were set aside. Raises
    FederationError below the quorum: who counts as knowing nothing would learn its forgotten pairs again.
    """
    requests, experiment = queue.requests(steps), federation.experiment
    served = [request for _, request in queue.served(at_work.folder)]
    memory = Tombstones(home())
    told = memory.told if experiment.data.kind == "folder" else lambda _: None
    found = federation.counted(tuple(r.forget_set for r in requests), len(served), told)
    silent = [n for n in federation.clients if n not in found.pairs]
    here = [n for n in federation.clients if n in found.pairs and n not in federation.optional]
    if len(here) < enough(experiment, federation.expected):
        raise FederationError(
            f"{', '.join(silent)} did not say how many pairs the requests concern, {len(here)} of {federation.expected} did: "
            "see that they answer, then `ease resume`, or ask the audit again; with a lower --quorum it goes on without them"
        )
    for name in silent:
        at_work.event(f"[roll call] {name} takes no part now: it did not say how many of its pairs the requests concern")
    federation = federation.without(silent).with_pairs(found.sizes)
    answers = RollCall(found.sizes, tuple(requests), found.pairs, found.smallest)
    everybody = data.load(experiment.data, experiment.seed).clients  # those that have left too
    aside = []
    for i, request in enumerate(requests):
        try:
            if request.id in {r.id for r in served}:
                continue
            if i in found.refused:
                raise ConfigError(found.refused[i])
            admission.check(request, experiment, everybody, requests[:i], at_work.folder)
            parties.check(request, answers)
        except ConfigError as error:
            aside.append(put_aside(at_work, request.id, str(error)))
    if not aside:
        _say_heavy(at_work, federation)
        for name in (n for n, count in found.sizes.items() if 0 < count < answers.limit(n)):
            at_work.event(f"[roll call] {name} has {found.sizes[name]} pairs and does not train: {answers.owner_says(name)}")
        for line in parties.single(answers, {r.id for r in served}):
            at_work.event(f"[roll call] {line}")
        for name, count in found.barred.items():
            if count:
                at_work.event(f"[roll call] {name} leaves out {count} pairs that were withdrawn before: nobody trains on them")
        return federation, answers, []
    federation, answers, more = ask_about(federation, at_work, queue.read(at_work.folder))
    return federation, answers, [*aside, *more]


def put_aside(at_work: Run, id: str, why: str) -> str:
    """Set a request aside, and say so; returns the line."""
    queue.set_aside(at_work.folder, id, why)
    line = f"request {id} is set aside: {why} (ask again in other words, or `ease withdraw RUN {id}` puts it to rest)"
    at_work.event(line, set_aside=id)
    return line


def remember(server: Server, state: FederationState) -> None:
    """Tell the hosts that a request is done, and write down here who has left and which pairs were named: what was withdrawn is
    not trained on again by mistake. Only hosts have something to remember."""
    if server.experiment.data.kind != "folder":
        return
    request, memory, run = state.served[-1], Tombstones(home()), str(server.run.folder)
    known = clients.read(server.run.folder)
    for name in request.leaving:
        memory.bury(name, run, request.id, known[name].key if name in known else "")
    if request.scenario == "class":
        memory.add_class(f"{run} {request.id}", request.targets, known)
    found = server.here(state).counted((request.forget_set,), served=1)
    for name, (ids,) in found.ids.items():
        memory.add(name, run, ids)
