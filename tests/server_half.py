"""The server half of methods by itself: vectors one can follow by hand, and a function in place of the clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ease_flwr.strategies.base import Method, MethodContext
from flwr.supercore.task_identity import TaskIdentity

from ease_flwr.config import Experiment, ForgetConfig, ForgetSet
from ease_flwr.exchange import rounds
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.training import Trained
from ease_flwr.store.cost import Cost

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # without it Flower refuses to make a Message

LEAVES = ForgetSet(scenario="client", targets=("client-0",))
PAIRS = {"client-0": 100, "client-1": 200, "client-2": 100}


def context(theta_0: Any, blocks: Any = (), forget: ForgetSet | None = LEAVES, **changes: Any) -> MethodContext:
    """client-0 leaves, client-1 and client-2 stay; or what changes say."""
    experiment = changes.pop("experiment", Experiment(forget=ForgetConfig(targets=("client-0",))))
    federation = SimpleNamespace(experiment=experiment, say=lambda line, **values: print(line), pairs=PAIRS, most=2000)
    who = {"clients": ("client-1", "client-2"), "forget_clients": ("client-0",), **changes}
    who["without"] = who.get("without", {n: (forget,) for n in who["forget_clients"] if forget})
    phase = who.pop("phase", "forget")
    return MethodContext(experiment, federation, phase, np.asarray(theta_0, np.float32), blocks, forget=forget, **who)  # type: ignore[arg-type]


def update(name: str, adapters: Any, examples: int = 100, step: Any = None) -> Update:
    """What a client has answered."""
    return Update(name, np.asarray(adapters, np.float32), step, {"num-examples": examples, "loss": 1.0})


class Clients:
    """Stand for all clients in the rounds of a test: answer(theta, requests) says what they send."""

    def __init__(self, answer: Callable[[Any, Mapping[str, Any]], dict[str, Update]]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        """What they were asked, round by round."""
        self.notified: list[frozenset[str]] = []
        """Who had its first message already, round by round."""
        self.usual: list[dict[str, float]] = []
        """How long an update was usually, as far as was known, round by round."""

    def train(self, federation: Any, theta: Any, requests: Any, notified: Any, before: Any, usual: Any) -> Trained:
        """In place of ease_flwr.exchange.training.train."""
        self.asked.append({n: r.instruction for n, r in requests.items()})
        self.notified.append(notified)
        self.usual.append(usual)
        return Trained(self.answer(theta, requests), Cost(rounds=1), notified | set(requests))


def run(monkeypatch: pytest.MonkeyPatch, clients: Clients, method: Method, theta: Any, plan: rounds.Plan) -> rounds.Outcome:
    """Rounds of a method, with these clients."""
    monkeypatch.setattr(rounds, "train", clients.train)
    federation: Any = method.context.federation
    return rounds.run_rounds(federation, method, np.asarray(theta, np.float32), plan)
