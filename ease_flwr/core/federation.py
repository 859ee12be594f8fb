"""The clients as the server sees them: names instead of node ids, and the one function that talks to them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from ease_flwr.core.config import ConfigError, Experiment, ForgetConfig, code_hash, digest, weights_sha256
from ease_flwr.core.journal import Exchange, Journal
from ease_flwr.core.machine import peak_memory
from ease_flwr.core.messages import ADAPTERS, STEP, Instruction, Update, read_answers, read_hello, read_update, request

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

    def add(self, other: Cost) -> None:
        """Count what the other has counted as well."""
        for f in fields(Cost):
            a, b = getattr(self, f.name), getattr(other, f.name)
            setattr(self, f.name, max(a, b) if f.name.endswith("memory") else a + b)

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
        self.journal = Journal()
        """Where exchanges of the phase at hand are kept."""
        self.failures: list[dict[str, Any]] = []
        """Answers that did not come or were not fit to be used, with phase, round, client and why."""
        self.grace = 5.0
        """Seconds to wait beyond a deadline for Flower's own word that a message is lost."""

    def roll_call(self, forget: ForgetConfig | None = None, gone: Collection[str] = ()) -> dict[str, dict[str, Any]]:
        """Wait for the nodes, ask who they are, and refuse unknown, missing and double names and other code.

        gone: clients that have left and need not be there.  Returns what each client says of itself, with the number of its
        pairs that `forget` concerns. Raises FederationError.
        """
        wanted, options = len(self.clients), self.experiment.federation
        limit = time.monotonic() + options.start_timeout
        while len(nodes := sorted(self.grid.get_node_ids())) < wanted - len(gone) and time.monotonic() < limit:
            time.sleep(0.5)
        if not wanted - len(gone) <= len(nodes) <= wanted:
            raise FederationError(
                f"{len(nodes)} nodes are connected, experiment {self.experiment.name} has {wanted} clients: run "
                f'`flwr run . --stream --federation-config "num-supernodes={wanted} client-resources-num-cpus=1"`'
            )
        hello = Instruction(phase="hello", round=0, train=self.experiment.learn)
        messages = [request(hello, {}, n, "query", options.deadline, "hello") for n in nodes]
        answers = self._collect(messages, options.deadline)
        found: dict[str, dict[str, Any]] = {}
        for node in nodes:
            reply = answers.get(node)
            if reply is None or reply.has_error():
                raise FederationError(f"a node did not answer the roll call: {_reason(reply)}")
            try:
                said = read_hello(reply)
            except ValueError as error:
                raise FederationError(str(error)) from None
            name = str(said["name"])
            if name not in self.clients:
                raise FederationError(f"unknown client {name!r}: this experiment has {', '.join(self.clients)}")
            if name in found:
                raise FederationError(f"two nodes call themselves {name!r}: names must be unique")
            if said["code"] != code_hash():
                raise FederationError(f"{name} runs other code than the server: install the same version on both")
            if said["base"] != weights_sha256(self.experiment.model):
                raise FederationError(
                    f"{name} has another base model than the server: model.weights must be the same file on both"
                )
            found[name] = said
            self.nodes[name], self.pairs[name] = node, int(said["pairs"])
        if missing := sorted(set(self.clients) - set(found) - set(gone)):
            raise FederationError(f"{', '.join(missing)} did not come: start the SuperNode there, then run this again")
        self.clients = tuple(n for n in self.clients if n in found)
        concerned = self.concerned(forget)
        return {name: {**found[name], "forget": concerned[name]} for name in sorted(found)}

    def concerned(self, forget: ForgetConfig | None) -> dict[str, int]:
        """How many of each client's pairs a request concerns; who cannot say so has none. Of single pairs a client is told its
        own alone."""
        if forget is None:
            return dict.fromkeys(self.clients, 0)
        asked = {
            n: Instruction(phase="hello", round=0, train=self.experiment.learn, forget=forget.told(n)) for n in self.clients
        }
        deadline = self.experiment.federation.start_timeout
        messages = [request(job, {}, self.nodes[n], "query", deadline, "request") for n, job in asked.items()]
        answers = self._collect(messages, deadline)
        found = {}
        for name in asked:
            reply = answers.get(self.nodes[name])
            if reply is not None and reply.has_error() and "forget.targets" in (reply.error.reason or ""):
                why = reply.error.reason or ""
                raise ConfigError(why.partition("ConfigError: ")[2] or why)
            if reply is not None and not reply.has_error():
                found[name] = int(read_hello(reply)["forget"])
            else:  # it may be gone already: that it leaves is known without it
                found[name] = self.pairs[name] if name in forget.leaving() else 0
        return found

    def train(
        self, theta: np.ndarray, requests: Mapping[str, Request], cost: Cost, told: set[str], before: Instruction | None = None
    ) -> dict[str, Update]:
        """One round of training. Adds to `cost`. Raises FederationError.

        told: clients that have their `once` arrays already; whoever gets them now is added.
        before: the evaluation of theta that everybody asked does first, in the same message.
        """
        how = {"before": before, "half": self.experiment.federation.half}
        requests = {n: replace(r, instruction=r.instruction.model_copy(update=how)) for n, r in requests.items()}

        def exchange() -> Exchange:
            if self.journal.resumed:  # another process has told them, for another run of Flower's
                told.clear()
            return self._train(theta, requests, told)

        asked = (
            digest("train", sha256(theta), {n: _identity(r) for n, r in sorted(requests.items())})
            if self.journal.folder
            else ""
        )
        found = self.journal.once(asked, exchange)
        for line in found.info["said"]:
            self.say(line)
        self.failures += found.info["failed"]
        cost.add(Cost(**found.info["cost"]))
        told.clear()
        told |= set(found.info["told"])
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for key, array in found.arrays.items():
            client, _, name = key.rpartition("/")
            arrays.setdefault(client, {})[name] = array
        return {
            n: Update(n, arrays[n][ADAPTERS], arrays[n].get(STEP), *said) for n, said in sorted(found.info["answers"].items())
        }

    def _train(self, theta: np.ndarray, requests: Mapping[str, Request], told: set[str]) -> Exchange:
        cost, started = Cost(rounds=1), time.monotonic()
        updates: dict[str, Update] = {}
        failures: dict[str, str] = {}
        said: list[str] = []
        failed: list[dict[str, Any]] = []
        asked = dict(requests)
        sent = theta.astype(np.float16 if self.experiment.federation.half else np.float32)
        start = sent.astype(np.float32)
        for attempt in (1, 2):
            replies = self._ask("train", {ADAPTERS: sent}, asked, cost, told)
            told |= set(asked)
            failures = {}
            for name in sorted(asked):
                reply, job = replies.get(name), asked[name].instruction
                try:
                    if reply is None or reply.has_error():
                        raise ValueError(_reason(reply))
                    updates[name] = read_update(name, reply, start, job, self.pairs[name] + job.overlap)
                    cost.uplink_bytes += updates[name].nbytes
                    cost.client_steps += int(updates[name].metrics.get("steps", 0))
                    cost.client_memory = max(cost.client_memory, int(updates[name].metrics.get("memory", 0)))
                except ValueError as error:
                    failures[name] = str(error)
            for name, why in self._too_long(theta, updates).items():
                del updates[name]
                failures[name] = why
            if not failures:
                break
            for name, why in failures.items():
                said.append(f"{name} failed{', asked again' if attempt == 1 else ', left out'}: {why}")
                job = requests[name].instruction
                failed.append({"phase": job.phase, "round": job.round, "client": name, "why": why})
            asked = {name: asked[name] for name in failures}
            told -= set(asked)  # whoever failed may have lost what it was told
        try:
            self._check_quorum(len(updates), len(requests), failures)
        except FederationError:
            for line in said:
                self.say(line)
            raise
        cost.seconds = time.monotonic() - started
        arrays = {f"{n}/{ADAPTERS}": u.adapters for n, u in updates.items()}
        arrays |= {f"{n}/{STEP}": u.step for n, u in updates.items() if u.step is not None}
        info = {"cost": asdict(cost), "told": sorted(told), "said": said, "failed": failed}
        return Exchange({**info, "answers": {n: [u.metrics, u.judged] for n, u in updates.items()}}, arrays)

    def _too_long(self, theta: np.ndarray, updates: Mapping[str, Update]) -> dict[str, str]:
        """Whose update is out of proportion to the others' of the round, where there are three or more."""
        norms: dict[str, float] = {}
        for name, update in updates.items():
            moved = [
                update.adapters.astype(np.float64) - theta,
                *([] if update.step is None else [update.step.astype(np.float64)]),
            ]
            norms[name] = max(float(np.linalg.norm(m)) for m in moved)
        middle = float(np.median(list(norms.values()))) if len(norms) > 2 else 0.0
        long = {n: v for n, v in norms.items() if 0 < middle * self.experiment.federation.norm_bound < v}
        return {n: f"update of norm {v:.3g}, the median is {middle:.3g} (federation.norm_bound)" for n, v in long.items()}

    def evaluate(
        self, models: Mapping[str, np.ndarray], instruction: Instruction, names: Iterable[str], cost: Cost
    ) -> dict[str, dict[str, Any]]:
        """What these clients count on their own pairs, all models in one exchange: client -> "MODEL/SET.kind" -> value, see
        LoraClient.evaluate. Adds bytes and seconds to `cost`. Raises FederationError."""
        requests = {n: Request(instruction) for n in names}

        def exchange() -> Exchange:
            spent, started, answers, failures = Cost(), time.monotonic(), {}, {}
            replies = self._ask("evaluate", models, requests, spent, set())
            for n in requests:
                reply = replies.get(n)
                try:
                    if reply is None or reply.has_error():
                        raise ValueError(_reason(reply))
                    answers[n] = read_answers(reply, models)
                except ValueError as error:
                    failures[n] = str(error)
            self._check_quorum(len(answers), len(requests), failures)
            spent.seconds = time.monotonic() - started
            said = [f"{n} failed, left out of the judgement: {why}" for n, why in failures.items()]
            return Exchange({"answers": answers, "cost": asdict(spent), "said": said})

        identity = {n: _identity(r) for n, r in requests.items()} if self.journal.folder else {}
        asked = digest("evaluate", {m: sha256(v) for m, v in models.items()}, identity) if self.journal.folder else ""
        found = self.journal.once(asked, exchange)
        for line in found.info["said"]:
            self.say(line)
        cost.add(Cost(**found.info["cost"]))
        answers: dict[str, dict[str, Any]] = found.info["answers"]
        return answers

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

        def exchange() -> Exchange:
            hello = Instruction(phase="hello", round=0, train=self.experiment.learn)
            deadline = self.experiment.federation.start_timeout
            nodes = {self.nodes[n]: n for n in names if n in self.nodes}
            answers = self._collect([request(hello, {}, n, "query", deadline, "hello") for n in nodes], deadline)
            return Exchange({"answering": sorted(nodes[node] for node, reply in answers.items() if not reply.has_error())})

        return set(self.journal.once(digest("answering", sorted(names)), exchange).info["answering"])

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
            messages.append(request(_told(r.instruction, name), sent, self.nodes[name], kind, deadline, group))
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
                if (node := waiting.pop(reply.metadata.reply_to_message_id, None)) is not None:
                    answers[node] = reply
                if reply.has_error() and "ActorDied" in (reply.error.reason or ""):
                    raise FederationError(f"a process of the simulation died, perhaps of memory: {_reason(reply)[:300]}")
            if waiting:
                time.sleep(0.05)
        return answers

    def _check_quorum(self, answered: int, asked: int, failures: Mapping[str, str]) -> None:
        if answered < max(1, self.experiment.federation.quorum * asked):
            why = "; ".join(f"{n}: {w}" for n, w in failures.items())
            raise FederationError(f"{answered} of {asked} clients answered, below the quorum: {why}")


def _told(instruction: Instruction, client: str) -> Instruction:
    """The instruction as this client gets it: of single pairs that are to be forgotten it is told its own, unless it meets
    returning ones, which only a simulation has."""
    others = {key: job for key in ("beside", "before") if (job := getattr(instruction, key))}
    instruction = instruction.model_copy(update={key: _told(job, client) for key, job in others.items()})
    if instruction.forget is None or instruction.overlap:
        return instruction
    return instruction.model_copy(update={"forget": instruction.forget.told(client)})


def _identity(request: Request) -> list[Any]:
    """What makes a request the same request."""
    return [
        request.instruction.model_dump_json(),
        *({k: sha256(a) for k, a in arrays.items()} for arrays in (request.arrays, request.once)),
    ]


def sha256(array: np.ndarray) -> str:
    """Of an array's kind, shape and bytes."""
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def _reason(reply: Message | None) -> str:
    """Why an answer is missing, in plain words."""
    if reply is None:
        return "no answer before the deadline"
    words = {1: "client app did not load", 2: "client raised", 3: "message expired", 4: "answer lost", 5: "node is gone"}
    words |= {0: "client process died", 7: "app not valid", 8: "client process stopped"}
    reason = " ".join((reply.error.reason or "").split())
    return f"{words.get(reply.error.code, f'error {reply.error.code}')}: {reason}"
