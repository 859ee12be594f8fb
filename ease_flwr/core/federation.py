"""The clients as the server sees them: names instead of node ids, and the one function that talks to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from ease_flwr.core.config import Experiment, code_hash
from ease_flwr.core.messages import ADAPTERS, Instruction, Update, read_update, request


class FederationError(RuntimeError):
    """Too few clients, or clients that do not fit: one line that says who, why and what to do."""


@dataclass(frozen=True)
class Request:
    """What one client is asked. arrays: beside the adapters; `once` travels in its first message and in a retry only."""

    instruction: Instruction
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    once: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Cost:
    """What a phase has cost so far. Bytes are those of the arrays; seconds are wall time."""

    rounds: int = 0
    client_steps: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    seconds: float = 0.0


class Federation:
    """All clients of a run. Replies come back sorted by name, whatever order they arrived in."""

    def __init__(self, grid: Grid, experiment: Experiment, clients: tuple[str, ...], say: Callable[[str], None]) -> None:
        self.grid = grid
        self.experiment = experiment
        self.clients = clients
        self.say = say
        self.nodes: dict[str, int] = {}
        self.grace = 5.0
        """Seconds to wait beyond a deadline for Flower's own word that a message is lost."""

    def roll_call(self) -> dict[str, dict[str, object]]:
        """Wait for the nodes, ask who they are, and refuse unknown, missing and double names and other code.

        Returns what each client says of itself. Raises FederationError.
        """
        wanted, options = len(self.clients), self.experiment.federation
        limit = time.monotonic() + options.start_timeout
        while len(nodes := sorted(self.grid.get_node_ids())) < wanted and time.monotonic() < limit:
            time.sleep(0.5)
        if len(nodes) != wanted:
            raise FederationError(
                f"{len(nodes)} nodes are connected, experiment {self.experiment.name} has {wanted} clients: run "
                f'`flwr run . --stream --federation-config "num-supernodes={wanted} client-resources-num-cpus=1"`'
            )
        hello = Instruction(phase="hello", round=0, train=self.experiment.learn)
        messages = [request(hello, {}, n, "query", options.deadline, "hello") for n in nodes]
        answers = self._collect(messages, options.deadline)
        found: dict[str, dict[str, object]] = {}
        for node in nodes:
            reply = answers.get(node)
            if reply is None or reply.has_error():
                raise FederationError(f"a node did not answer the roll call: {_reason(reply)}")
            said: dict[str, object] = dict(reply.content["info"])
            name = str(said["name"])
            if name not in self.clients:
                raise FederationError(f"unknown client {name!r}: this experiment has {', '.join(self.clients)}")
            if name in found:
                raise FederationError(f"two nodes call themselves {name!r}: names must be unique")
            if said["code"] != code_hash():
                raise FederationError(f"{name} runs other code than the server: install the same version on both")
            found[name] = said
            self.nodes[name] = node
        return dict(sorted(found.items()))

    def train(self, theta: np.ndarray, requests: Mapping[str, Request], cost: Cost, first: bool) -> dict[str, Update]:
        """One round of training. first: whether `once` arrays travel. Adds to `cost`. Raises FederationError."""
        started = time.monotonic()
        updates: dict[str, Update] = {}
        failures: dict[str, str] = {}
        asked = dict(requests)
        for attempt in (1, 2):
            replies = self._ask("train", theta, asked, complete=first or attempt == 2, cost=cost)
            failures = {}
            for name in sorted(asked):
                reply = replies.get(name)
                try:
                    if reply is None or reply.has_error():
                        raise ValueError(_reason(reply))
                    updates[name] = read_update(name, reply, theta.shape)
                    cost.uplink_bytes += updates[name].adapters.nbytes
                    cost.client_steps += int(updates[name].metrics.get("steps", 0))
                except ValueError as error:
                    failures[name] = str(error)
            if not failures:
                break
            for name, why in failures.items():
                self.say(f"{name} failed{', asked again' if attempt == 1 else ', left out'}: {why}")
            asked = {name: asked[name] for name in failures}
        self._check_quorum(len(updates), len(requests), failures)
        cost.rounds += 1
        cost.seconds += time.monotonic() - started
        return dict(sorted(updates.items()))

    def evaluate(self, theta: np.ndarray, instruction: Instruction) -> dict[str, dict[str, Any]]:
        """What every client counts on its own pairs, by client and set (see LoraClient.evaluate). Raises FederationError."""
        replies = self._ask("evaluate", theta, {n: Request(instruction) for n in self.clients}, complete=False, cost=Cost())
        failures = {n: _reason(r) for n in self.clients if (r := replies.get(n)) is None or r.has_error()}
        self._check_quorum(len(self.clients) - len(failures), len(self.clients), failures)
        return {n: dict(replies[n].content["metrics"]) for n in self.clients if n not in failures}

    def _ask(
        self, kind: str, theta: np.ndarray, requests: Mapping[str, Request], complete: bool, cost: Cost
    ) -> dict[str, Message]:
        deadline = self.experiment.federation.deadline
        messages = []
        for name in sorted(requests):
            r = requests[name]
            arrays = {ADAPTERS: theta, **r.arrays, **(r.once if complete else {})}
            cost.downlink_bytes += sum(a.nbytes for a in arrays.values())
            group = f"{r.instruction.phase}-{r.instruction.round}"
            messages.append(request(r.instruction, arrays, self.nodes[name], kind, deadline, group))
        answers = self._collect(messages, deadline)
        return {name: answers[self.nodes[name]] for name in requests if self.nodes[name] in answers}

    def _collect(self, messages: list[Message], deadline: float) -> dict[int, Message]:
        """Send, wait until all have answered or the deadline is over, and map answers to nodes by message id."""
        ids = list(self.grid.push_messages(messages))
        waiting = dict(zip(ids, (m.metadata.dst_node_id for m in messages), strict=True))
        answers: dict[int, Message] = {}
        limit = time.monotonic() + deadline + self.grace
        while waiting and time.monotonic() < limit:
            for reply in self.grid.pull_messages(list(waiting)):
                answers[waiting.pop(reply.metadata.reply_to_message_id)] = reply
            if waiting:
                time.sleep(0.05)
        return answers

    def _check_quorum(self, answered: int, asked: int, failures: Mapping[str, str]) -> None:
        if answered < max(1, self.experiment.federation.quorum * asked):
            why = "; ".join(f"{n}: {w}" for n, w in failures.items())
            raise FederationError(f"{answered} of {asked} clients answered, below the quorum: {why}")


def _reason(reply: Message | None) -> str:
    """Why an answer is missing, in plain words."""
    if reply is None:
        return "no answer before the deadline"
    words = {1: "client app did not load", 2: "client raised", 3: "message expired", 4: "answer lost", 5: "node is gone"}
    words |= {0: "client process died", 7: "app not valid", 8: "client process stopped"}
    reason = " ".join((reply.error.reason or "").split())
    return f"{words.get(reply.error.code, f'error {reply.error.code}')}: {reason}"
