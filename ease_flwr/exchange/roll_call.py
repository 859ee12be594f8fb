"""Who is there: names instead of node ids, and how many pairs of each client the forget sets concern."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import Message

from ease_flwr.config import Experiment, ForgetSet, code_hash, model_sha256
from ease_flwr.exchange.answers import Present, read
from ease_flwr.exchange.messages import Hello, as_told, message
from ease_flwr.exchange.transport import RAISED, FederationError, Node, Transport, by_reason, printable, reason

PAUSE = 0.5
"""Seconds between two looks for nodes."""
FIRST = 0.25
"""Share of federation.start_timeout for a first answer."""


@dataclass(frozen=True)
class Roster:
    """The clients that take part, by name in the experiment's order, with their nodes and their numbers of training pairs.

    A client of a phase that has begun may be without a node: it takes part, and does not answer now.
    """

    clients: tuple[str, ...]
    nodes: Mapping[str, int]
    pairs: Mapping[str, int]
    smallest: Mapping[str, int] = field(default_factory=dict)
    """How many of them a result of training must be about there; 1 of who is not named."""

    def without(self, names: Collection[str]) -> Roster:
        """These clients are gone: nobody asks them again."""
        return replace(self, clients=tuple(n for n in self.clients if n not in names))


@dataclass(frozen=True)
class Wanted:
    """Who may come to a roll call, and who must."""

    names: tuple[str, ...]
    """All clients of the experiment, in its order."""
    departed: frozenset[str] = frozenset()
    """Clients that have left, or have asked to: they need not be there."""
    buried: Mapping[str, str] = field(default_factory=dict)
    """By the digest of its node's key, the name of a client that was forgotten: it does not come back under another one."""
    forgotten: Mapping[str, str] = field(default_factory=dict)
    """By name, clients that another run has forgotten, and what is to be said: they take no part."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """By name, the digest of the key that its node had first."""

    @property
    def expected(self) -> list[str]:
        """Those of whom a quorum must be there."""
        return [n for n in self.names if n not in self.departed and n not in self.forgotten]


@dataclass(frozen=True)
class Called:
    """What came of a roll call."""

    roster: Roster
    said: Mapping[str, Present]
    nodes: Mapping[str, Node]
    missing: Mapping[str, str]
    """Why a client that was expected is not there."""
    strange: tuple[str, ...]
    """What is to be said of nodes that are none of these clients."""


def roll_call(transport: Transport, experiment: Experiment, wanted: Wanted) -> Called:
    """Wait for the nodes, and ask who they are. Who has other code, another base model or the name of another is left out.

    Raises FederationError where fewer are there than `federation.quorum` of the expected.
    """
    nodes = _connected(transport, experiment, wanted)
    answers = _answers(transport, experiment, list(nodes))
    claims: dict[str, dict[int, Present]] = {}
    wrong: dict[str, str] = {}
    strange: dict[str, str] = {}
    for id, node in nodes.items():
        said = _present(answers.get(id))
        name = node.name if isinstance(said, str) else said.name
        why = said if isinstance(said, str) else _problem(said, node, experiment, wanted)
        if not why and not isinstance(said, str):
            claims.setdefault(name, {})[id] = said
        elif name in wanted.names:
            wrong[name] = why
        else:
            strange[name or f"node {id}"] = why
    at = {name: _owner(name, [*of], nodes, wanted) for name, of in claims.items()}
    wrong |= {name: "two nodes call themselves so: names must be unique" for name, id in at.items() if id is None}
    here = {name: id for name, id in at.items() if id is not None}
    found = {name: claims[name][id] for name, id in here.items()}
    missing = {n: wrong.get(n, "it did not come") for n in wanted.expected if n not in found}
    strange |= {n: why for n, why in wrong.items() if n not in wanted.expected}
    _check_quorum(experiment, wanted, missing, strange, len(nodes))
    pairs, smallest = ({n: getattr(said, about) for n, said in found.items()} for about in ("pairs", "smallest"))
    roster = Roster(tuple(n for n in wanted.names if n in found), here, pairs, smallest)
    return Called(roster, found, {n: nodes[id] for n, id in here.items()}, missing, tuple(by_reason(strange)))


def _owner(name: str, ids: Sequence[int], nodes: Mapping[int, Node], wanted: Wanted) -> int | None:
    """Which of the nodes that call themselves so has the name: the only one, or that which had its key before."""
    known = wanted.keys.get(name)
    bound = [id for id in ids if known and nodes[id].key == known]
    return bound[0] if len(bound) == 1 else ids[0] if len(ids) == 1 else None


def enough(experiment: Experiment, expected: int) -> int:
    """How many of so many clients must be there."""
    return max(1, math.ceil(experiment.federation.quorum * expected - 1e-9))


def _connected(transport: Transport, experiment: Experiment, wanted: Wanted) -> dict[int, Node]:
    """The nodes, once all that are expected are there or the time is over; a quarter of it where there are enough."""
    expected, begun, patience = len(wanted.expected), time.monotonic(), experiment.federation.start_timeout
    while True:
        nodes = transport.nodes()
        named = [n.name for n in nodes.values()]
        there = sum(not name or name in wanted.expected for name in named)  # who has left may be there too
        waited = time.monotonic() - begun
        enough_there = there >= expected or (waited >= patience / 4 and there >= enough(experiment, expected))
        if waited >= patience or enough_there:
            break
        time.sleep(min(PAUSE, patience))
    return nodes


def _answers(transport: Transport, experiment: Experiment, nodes: list[int]) -> dict[int, Message]:
    """What the nodes answer. Who does not is asked again, after longer and longer pauses, for federation.start_timeout seconds.

    Right after a restart of the SuperLink its nodes are there and cannot be reached. An error of the client itself stays.
    """
    answers: dict[int, Message] = {}
    patience = experiment.federation.start_timeout
    limit, share, pause = time.monotonic() + patience, FIRST, PAUSE
    while True:
        asked = [n for n in nodes if n not in answers or (answers[n].has_error() and answers[n].error.code != RAISED)]
        left = limit - time.monotonic()
        if not asked or left <= 0:
            return answers
        deadline = max(min(share * patience, left), FIRST * patience)
        answers |= transport.ask([message(Hello(), {}, n, deadline) for n in asked], deadline)
        if any(n not in answers or answers[n].has_error() for n in asked):
            time.sleep(min(pause, patience / 10))
            share, pause = 1.0, 2 * pause


def _check_quorum(
    experiment: Experiment, wanted: Wanted, missing: Mapping[str, str], strange: Mapping[str, str], nodes: int
) -> None:
    """Raises FederationError: how many are there, why the others are not, and what to do."""
    expected = len(wanted.expected)
    there = expected - len(missing)
    if there >= enough(experiment, expected):
        return
    if Path(sys.argv[0]).name == "flwr-simulation" and nodes < len(wanted.names):
        raise FederationError(
            f"{nodes} nodes are connected, experiment {experiment.name} has {len(wanted.names)} clients: run "
            f'`flwr run . --stream --federation-config "num-supernodes={len(wanted.names)} client-resources-num-cpus=1"`'
        )
    why = "; ".join(by_reason({**missing, **strange}))
    share = experiment.federation.quorum
    raise FederationError(
        f"{there} of {expected} clients are there, federation.quorum={share:g} wants {enough(experiment, expected)}: {why}: "
        "see that they are connected (`ease status`), then `ease resume`, or ask the audit again; with a lower --quorum it "
        "goes on without them"
    )


def _present(reply: Message | None) -> Present | str:
    """What a node says of itself, or why that cannot be used."""
    if reply is None or reply.has_error():
        return f"it did not answer the roll call: {reason(reply)}"
    try:
        return read(reply, Present)
    except ValueError as error:
        return f"it did not answer the roll call as a client of this app: {printable(str(error))}"


def _problem(said: Present, node: Node, experiment: Experiment, wanted: Wanted) -> str:
    """Why a client cannot take part; "" where it can."""
    name = said.name
    if node.name and node.name != name:
        return f"it was registered as {node.name}: one name for both, client-name there and --name of `flwr supernode register`"
    if name not in wanted.names:
        return f"unknown client {name!r}: this experiment has {', '.join(wanted.names)}"
    if name in wanted.forgotten:
        return wanted.forgotten[name]
    if wanted.buried.get(node.key, name) != name:
        return f"it has the key of {wanted.buried[node.key]}, which was forgotten: a client comes back under its own name"
    if node.key and wanted.keys.get(name, node.key) != node.key and not node.name:
        return (
            f"it calls itself {name}, which had another key before: if its owner has a new key, register it under that name "
            "(`ease deploy replace-key`, then `ease deploy register`)"
        )
    if most := _too_many(said, experiment):
        return f"it says that it has {said.pairs} training pairs, federation.sizes states {most}: ask its owner, and mend that"
    if said.code != code_hash():
        return f"{name} runs other code than the server: install the same version on both"
    if said.base != model_sha256(experiment.model):
        return f"{name} has another base model than the server: model.weights must be the same file on both"
    return ""


def _too_many(said: Present, experiment: Experiment) -> int:
    """How many pairs federation.sizes states of a client that says that it has more; 0 where it has not."""
    most = experiment.federation.stated.get(said.name, said.pairs)
    return most if said.pairs > most else 0


@dataclass(frozen=True)
class Counted:
    """What the clients said about forget sets."""

    sizes: Mapping[str, int]
    """By client that answered: its training pairs."""
    pairs: Mapping[str, tuple[int, ...]]
    """How many of them each is the first to name."""
    ids: Mapping[str, tuple[tuple[str, ...], ...]]
    """Ids of single pairs that each names."""
    barred: Mapping[str, int]
    """Pairs that it leaves out, as they were withdrawn before."""
    smallest: Mapping[str, int]
    """How many of them a result of training must be about there."""
    refused: Mapping[int, str]
    """By position of a forget set: why it cannot be served."""


def counted(transport: Transport, experiment: Experiment, roster: Roster, hellos: Mapping[str, Hello]) -> Counted:
    """How many pairs of each client its forget sets concern, in their order; a pair counts for the first that names it.

    hellos: by client. Where nobody is asked or told anything, nothing is sent.
    """
    forget = next(iter(hellos.values())).forget if hellos else ()
    if not forget and not any(h.told for h in hellos.values()):
        nothing: dict[str, tuple[()]] = dict.fromkeys(roster.clients, ())
        return Counted({n: roster.pairs[n] for n in roster.clients}, nothing, nothing, {}, roster.smallest, {})
    deadline = experiment.federation.start_timeout
    there = [n for n in roster.clients if n in roster.nodes]
    answers = transport.ask([message(as_told(hellos[n], n), {}, roster.nodes[n], deadline) for n in there], deadline)
    said: dict[str, Present] = {}
    for name in there:
        reply = answers.get(roster.nodes[name])
        try:
            if reply is None or reply.has_error():
                raise ValueError(reason(reply))
            answer = read(reply, Present)
            lengths = {len(a) for a in (answer.forget, answer.refused, answer.unknown, answer.ids)}
            if answer.name != name or lengths != {len(forget)} or _too_many(answer, experiment):
                raise ValueError("an answer to another question")
        except ValueError:  # it may be gone already: that it leaves is known without it
            continue
        said[name] = answer
    refused = {i: why for i, part in enumerate(forget) if (why := _why_not(i, part, said))}

    def of(field: str) -> dict[str, Any]:
        return {n: getattr(answer, field) for n, answer in said.items()}

    return Counted(of("pairs"), of("forget"), of("ids"), of("barred"), of("smallest"), refused)


def _why_not(i: int, part: ForgetSet, said: Mapping[str, Present]) -> str:
    """Why a forget set cannot be served, "" where it can: a part of it that names nothing is a mistake.

    Only a client whose pairs are named one by one has a say, and only about its own.
    """
    for name in part.named & said.keys() if part.scenario == "sample" else ():
        answer = said[name]
        strange = [t for t in answer.unknown[i] if t in part.targets and t.startswith(f"{name}/")]
        if answer.refused[i]:
            return printable(answer.refused[i])
        if strange:
            return f"{printable(strange[0])} is not among the training pairs there: `ease data ids` on that host lists them"
    if part.scenario == "class" and said:
        nowhere = set(part.targets).intersection(*(a.unknown[i] for a in said.values()))
        if nowhere:
            return f"no training pair of those who answer has label {', '.join(sorted(nowhere))}: {', '.join(said)}"
    return ""


def answering(transport: Transport, experiment: Experiment, roster: Roster, names: Iterable[str]) -> list[str]:
    """Those of these clients that answer now, sorted."""
    deadline = experiment.federation.start_timeout
    nodes = {roster.nodes[n]: n for n in names if n in roster.nodes}
    answers = transport.ask([message(Hello(), {}, n, deadline) for n in nodes], deadline)
    return sorted(nodes[node] for node, reply in answers.items() if not reply.has_error())
