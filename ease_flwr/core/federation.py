"""The clients as the server sees them: names instead of node ids, and the one function that talks to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from ease_flwr.core.config import Experiment, ForgetConfig, code_hash
from ease_flwr.core.machine import peak_memory
from ease_flwr.core.messages import ADAPTERS, STEP, Instruction, Update, read_update, request

if TYPE_CHECKING:
    from ease_flwr.core.retrieval import Judgement


class FederationError(RuntimeError):
    """Too few clients, or clients that do not fit: one line that says who, why and what to do."""


@dataclass(frozen=True)
class Request:
    """What one client is asked. arrays: beside the adapters; `once` travels until the client has been told."""

    instruction: Instruction
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    once: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Cost:
    """What a phase has cost so far. Bytes are those of the arrays; seconds are wall time of the exchanges.

    server_seconds: of the server's own mathematics.  server_memory, client_memory: the most bytes that the server's process,
    and that of any client, had in memory until then.
    """

    rounds: int = 0
    client_steps: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    seconds: float = 0.0
    server_seconds: float = 0.0
    server_memory: int = 0
    client_memory: int = 0

    def __add__(self, other: Cost) -> Cost:
        def both(name: str) -> Any:
            a, b = getattr(self, name), getattr(other, name)
            return max(a, b) if name.endswith("memory") else a + b

        return Cost(**{f.name: both(f.name) for f in fields(Cost)})

    @contextmanager
    def on_server(self) -> Iterator[None]:
        """Count what is done in the `with` block, but for exchanges in it, as the server's own work."""
        started = time.monotonic() - self.seconds
        yield
        self.server_seconds += time.monotonic() - self.seconds - started
        self.server_memory = peak_memory()


class Federation:
    """All clients of a run. Replies come back sorted by name, whatever order they arrived in."""

    def __init__(self, grid: Grid, experiment: Experiment, clients: tuple[str, ...], say: Callable[[str], None]) -> None:
        self.grid = grid
        self.experiment = experiment
        self.clients = clients
        self.say = say
        self.nodes: dict[str, int] = {}
        self.pairs: dict[str, int] = {}
        """Training pairs of each client, as it said at the roll call."""
        self.grace = 5.0
        """Seconds to wait beyond a deadline for Flower's own word that a message is lost."""

    def roll_call(self, forget: ForgetConfig | None = None) -> dict[str, dict[str, Any]]:
        """Wait for the nodes, ask who they are, and refuse unknown, missing and double names and other code.

        Returns what each client says of itself, with the number of its pairs that `forget` concerns. Raises FederationError.
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
        hello = Instruction(phase="hello", round=0, train=self.experiment.learn, forget=forget)
        messages = [request(hello, {}, n, "query", options.deadline, "hello") for n in nodes]
        answers = self._collect(messages, options.deadline)
        found: dict[str, dict[str, Any]] = {}
        for node in nodes:
            reply = answers.get(node)
            if reply is None or reply.has_error():
                raise FederationError(f"a node did not answer the roll call: {_reason(reply)}")
            said: dict[str, Any] = dict(reply.content["info"])
            name = str(said["name"])
            if name not in self.clients:
                raise FederationError(f"unknown client {name!r}: this experiment has {', '.join(self.clients)}")
            if name in found:
                raise FederationError(f"two nodes call themselves {name!r}: names must be unique")
            if said["code"] != code_hash():
                raise FederationError(f"{name} runs other code than the server: install the same version on both")
            found[name] = said
            self.nodes[name], self.pairs[name] = node, int(said["pairs"])
        return dict(sorted(found.items()))

    def train(self, theta: np.ndarray, requests: Mapping[str, Request], cost: Cost, told: set[str]) -> dict[str, Update]:
        """One round of training. Adds to `cost`. Raises FederationError.

        told: clients that have their `once` arrays already; whoever gets them now is added.
        """
        started = time.monotonic()
        updates: dict[str, Update] = {}
        failures: dict[str, str] = {}
        asked = dict(requests)
        for attempt in (1, 2):
            replies = self._ask("train", {ADAPTERS: theta}, asked, cost, told)
            told |= set(asked)
            failures = {}
            for name in sorted(asked):
                reply = replies.get(name)
                try:
                    if reply is None or reply.has_error():
                        raise ValueError(_reason(reply))
                    keys = (ADAPTERS, STEP) if asked[name].instruction.beside else (ADAPTERS,)
                    updates[name] = read_update(name, reply, theta.shape, keys)
                    cost.uplink_bytes += updates[name].nbytes
                    cost.client_steps += int(updates[name].metrics.get("steps", 0))
                    cost.client_memory = max(cost.client_memory, int(updates[name].metrics.get("memory", 0)))
                except ValueError as error:
                    failures[name] = str(error)
            if not failures:
                break
            for name, why in failures.items():
                self.say(f"{name} failed{', asked again' if attempt == 1 else ', left out'}: {why}")
            asked = {name: asked[name] for name in failures}
            told -= set(asked)  # whoever failed may have lost what it was told
        self._check_quorum(len(updates), len(requests), failures)
        cost.rounds += 1
        cost.seconds += time.monotonic() - started
        return dict(sorted(updates.items()))

    def evaluate(
        self, models: Mapping[str, np.ndarray], instruction: Instruction, names: Iterable[str], cost: Cost
    ) -> dict[str, dict[str, Any]]:
        """What these clients count on their own pairs, all models in one exchange: client -> "MODEL/SET.kind" -> value, see
        LoraClient.evaluate. Adds bytes and seconds to `cost`. Raises FederationError."""
        requests, started = {n: Request(instruction) for n in names}, time.monotonic()
        replies = self._ask("evaluate", models, requests, cost, set())
        cost.seconds += time.monotonic() - started
        failures = {n: _reason(r) for n in requests if (r := replies.get(n)) is None or r.has_error()}
        self._check_quorum(len(requests) - len(failures), len(requests), failures)
        return {n: dict(replies[n].content["metrics"]) for n in requests if n not in failures}

    def validate(
        self, models: Mapping[str, np.ndarray], names: Iterable[str], forget: ForgetConfig | None, cost: Cost
    ) -> dict[str, Judgement]:
        """Models on these clients' validation pairs, with the level of what is to be forgotten. They travel in half precision.

        Adds bytes and seconds to `cost`. Raises FederationError.
        """
        from ease_flwr.core.retrieval import pool  # imports torch

        train = self.experiment.learn
        ask = Instruction(phase="validate", round=0, train=train, forget=forget, split="validation", level=True)
        answers = self.evaluate({n: m.astype(np.float16) for n, m in models.items()}, ask, names, cost)
        return {name: pool(answers, name) for name in models}

    def leave(self, name: str) -> None:
        """This client is gone: nobody asks it again."""
        self.clients = tuple(n for n in self.clients if n != name)

    def answering(self, names: Iterable[str]) -> set[str]:
        """Those of these clients that answer now."""
        hello = Instruction(phase="hello", round=0, train=self.experiment.learn)
        deadline = self.experiment.federation.start_timeout
        nodes = {self.nodes[n]: n for n in names}
        answers = self._collect([request(hello, {}, n, "query", deadline, "hello") for n in nodes], deadline)
        return {nodes[node] for node, reply in answers.items() if not reply.has_error()}

    def _ask(
        self, kind: str, arrays: Mapping[str, np.ndarray], requests: Mapping[str, Request], cost: Cost, told: set[str]
    ) -> dict[str, Message]:
        deadline = self.experiment.federation.deadline
        messages = []
        for name in sorted(requests):
            r = requests[name]
            sent = {**arrays, **r.arrays, **({} if name in told else r.once)}
            cost.downlink_bytes += sum(a.nbytes for a in sent.values())
            group = f"{r.instruction.phase}-{r.instruction.round}"
            messages.append(request(r.instruction, sent, self.nodes[name], kind, deadline, group))
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
