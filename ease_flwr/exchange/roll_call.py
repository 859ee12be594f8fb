"""Who is there: names instead of node ids, and how many pairs of each client the forget sets concern."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from flwr.app import Message

from ease_flwr.config import Experiment, Union, code_hash, weights_sha256
from ease_flwr.exchange.answers import Present, read
from ease_flwr.exchange.messages import Hello, as_told, message
from ease_flwr.exchange.transport import FederationError, Transport, reason


@dataclass(frozen=True)
class Roster:
    """The clients that take part, by name in the experiment's order, with their nodes and their numbers of training pairs."""

    clients: tuple[str, ...]
    nodes: Mapping[str, int]
    pairs: Mapping[str, int]

    def without(self, names: Collection[str]) -> Roster:
        """These clients are gone: nobody asks them again."""
        return replace(self, clients=tuple(n for n in self.clients if n not in names))


def roll_call(
    transport: Transport, experiment: Experiment, names: tuple[str, ...], departed: Collection[str] = ()
) -> tuple[Roster, dict[str, Present]]:
    """Wait for the nodes, ask who they are, and refuse unknown, missing and double names, other code and other base models.

    departed: clients that have left and need not be there.  Returns also what each client said. Raises FederationError.
    """
    wanted, options = len(names), experiment.federation
    limit = time.monotonic() + options.start_timeout
    while len(nodes := transport.nodes()) < wanted - len(departed) and time.monotonic() < limit:
        time.sleep(0.5)
    if not wanted - len(departed) <= len(nodes) <= wanted:
        raise FederationError(
            f"{len(nodes)} nodes are connected, experiment {experiment.name} has {wanted} clients: run "
            f'`flwr run . --stream --federation-config "num-supernodes={wanted} client-resources-num-cpus=1"`'
        )
    answers = transport.ask([message(Hello(), {}, n, options.deadline) for n in nodes], options.deadline)
    found: dict[str, Present] = {}
    at: dict[str, int] = {}
    for node in nodes:
        said = _present(answers.get(node))
        _check(said, experiment, names, found)
        found[said.name], at[said.name] = said, node
    if missing := sorted(set(names) - set(found) - set(departed)):
        raise FederationError(f"{', '.join(missing)} did not come: start the SuperNode there, then run this again")
    pairs = {name: said.pairs for name, said in found.items()}
    return Roster(tuple(n for n in names if n in found), at, pairs), found


def _present(reply: Message | None) -> Present:
    if reply is None or reply.has_error():
        raise FederationError(f"a node did not answer the roll call: {reason(reply)}")
    try:
        return read(reply, Present)
    except ValueError as error:
        raise FederationError(f"a node did not answer the roll call as a client of this app: {error}") from None


def _check(said: Present, experiment: Experiment, names: Collection[str], found: Collection[str]) -> None:
    name = said.name
    if name not in names:
        raise FederationError(f"unknown client {name!r}: this experiment has {', '.join(names)}")
    if name in found:
        raise FederationError(f"two nodes call themselves {name!r}: names must be unique")
    if said.code != code_hash():
        raise FederationError(f"{name} runs other code than the server: install the same version on both")
    if said.base != weights_sha256(experiment.model):
        raise FederationError(f"{name} has another base model than the server: model.weights must be the same file on both")


def counted(
    transport: Transport, experiment: Experiment, roster: Roster, forget: Union
) -> tuple[dict[str, tuple[int, ...]], dict[int, str]]:
    """How many pairs of each client these forget sets concern, in their order; a pair counts for the first that names it.

    Returns the counts by client, and why a set cannot be served, by its position. A client that does not answer is not
    among the counts.
    """
    if not forget:
        return dict.fromkeys(roster.clients, ()), {}
    deadline = experiment.federation.start_timeout
    hello = Hello(forget=forget)
    messages = [message(as_told(hello, n), {}, roster.nodes[n], deadline) for n in roster.clients]
    answers = transport.ask(messages, deadline)
    counts: dict[str, tuple[int, ...]] = {}
    refused: dict[int, str] = {}
    for name in roster.clients:
        reply = answers.get(roster.nodes[name])
        try:
            if reply is None or reply.has_error():
                raise ValueError(reason(reply))
            said = read(reply, Present)
            if said.name != name or len(said.forget) != len(forget) or len(said.refused) != len(forget):
                raise ValueError("an answer to another question")
        except ValueError:  # it may be gone already: that it leaves is known without it
            continue
        counts[name] = said.forget
        refused |= {i: why for i, why in enumerate(said.refused) if why and i not in refused}
    return counts, refused


def answering(transport: Transport, experiment: Experiment, roster: Roster, names: Iterable[str]) -> list[str]:
    """Those of these clients that answer now, sorted."""
    deadline = experiment.federation.start_timeout
    nodes = {roster.nodes[n]: n for n in names if n in roster.nodes}
    answers = transport.ask([message(Hello(), {}, n, deadline) for n in nodes], deadline)
    return sorted(nodes[node] for node, reply in answers.items() if not reply.has_error())
