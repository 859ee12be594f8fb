"""A Flower Grid that calls the ClientApp in this process: a whole federation without Ray, SuperLink or network."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

from ease_flwr import server_app
from ease_flwr.client_app import app as client_app
from ease_flwr.exchange.transport import Transport
from ease_flwr.server import audit, pipeline

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # without it Flower refuses to make a Message


class Clock:
    """Time that passes by sleeping alone: a slow machine misses no deadline."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def at_once(grid: Any) -> Transport:
    """The transport of a grid in this process, where no answer is worth a wait."""
    return Transport(grid, grace=0.1, pause=0.001)


for phase in (pipeline, audit):
    phase.Transport = at_once  # type: ignore[attr-defined]

Tamper = Callable[[str, Message], Message | None]


class InProcessGrid:
    """Nodes 100, 101, ... are client-0, client-1, ...

    shuffle: seed of the order in which replies arrive.  tamper: sees each (client name, reply) and may change or drop it.
    """

    def __init__(self, clients: int, run_config: dict[str, Any], shuffle: int = 0, tamper: Tamper | None = None) -> None:
        self.contexts = {
            100 + k: Context(
                run_id=1, node_id=100 + k, node_config={"partition-id": k}, state=RecordDict(), run_config=dict(run_config)
            )
            for k in range(clients)
        }
        self.random = random.Random(shuffle)
        self.tamper = tamper
        self.pending: dict[str, Message] = {}
        self.sent: list[Message] = []
        self.count = 0

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=n) for n in self.contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        assert isinstance(messages, list), "a generator works in simulation and fails in deployment"
        ids = []
        for message in messages:
            self.count += 1
            message.metadata._message_id = f"message-{self.count}"
            ids.append(message.metadata.message_id)
            self.sent.append(message)
            self.pending[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [i for i in message_ids if i in self.pending]
        self.random.shuffle(ready)
        replies = []
        for i in ready[: max(1, len(ready) // 2)]:  # some now, some at the next call
            message = self.pending.pop(i)
            context = self.contexts[message.metadata.dst_node_id]
            try:
                reply = client_app(copy.deepcopy(message), context)
            except Exception as error:
                reply = Message(Error(code=2, reason=str(error)), reply_to=message)
            if self.tamper:
                changed = self.tamper(f"client-{message.metadata.dst_node_id - 100}", reply)
                if changed is None:
                    continue
                reply = changed
            replies.append(reply)
        return replies


def context_of(run_config: dict[str, Any]) -> Context:
    """The server's context of a run."""
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)


def submit(run_config: dict[str, Any], grid: InProcessGrid | None = None, clients: int = 3) -> None:
    """What the launcher does, in this process."""
    server_app.main(grid or InProcessGrid(clients, run_config), context_of(run_config))
