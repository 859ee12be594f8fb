"""Ordinary federated learning, which is no method of unlearning: the learn phase, its references, and the continuation."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ease_flwr.strategies.base import Method, MethodContext, Vector, mean
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from ease_flwr.config import ConfigError, TrainConfig
from ease_flwr.exchange.answers import PUSH, Update
from ease_flwr.exchange.federation import Request
from ease_flwr.exchange.messages import ADAPTERS, Returning, pack

if TYPE_CHECKING:
    from ease_flwr.model.lock import ForgetLock


class Ordinary(Method):
    """At a constant rate, and as long a mean at the end as the experiment says."""

    def __init__(self, context: MethodContext, lock: ForgetLock | None = None) -> None:
        super().__init__(context, Method.Params(lr_end=1), lock)
        self.average = context.experiment.learn.average


class Learning(Ordinary):
    """The learn phase: everybody trains, and the aggregator that the experiment names combines."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.aggregator = aggregator(context.experiment.learn)

    def requests(self, round: int) -> dict[str, Request]:
        return self.learners(round, proximal=getattr(self.aggregator, "proximal_mu", 0.0))

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        if isinstance(self.aggregator, flower.fedopt.FedOpt):
            self.aggregator.current_arrays = {ADAPTERS: theta}
        elif isinstance(self.aggregator, flower.FedAvgM):
            self.aggregator.current_arrays = pack({ADAPTERS: theta})
        return mean(updates, self.aggregator, round)


class Continuing(Ordinary):
    """The continuation: those who stay go on learning under the forget lock, both halves of it."""

    def __init__(self, context: MethodContext, lock: ForgetLock | None, returning: Returning | None) -> None:
        """returning: pairs about forgotten knowledge that the first client meets."""
        super().__init__(context, lock)
        self.returning = returning

    def requests(self, round: int) -> dict[str, Request]:
        name, once = packed(self.lock)
        requests = self.learners(round, lock=name)
        if self.returning and requests:
            first = self.context.clients[0]
            job: Any = requests[first].instruction
            requests[first] = Request(job.model_copy(update={"returning": self.returning}))
        return {n: replace(r, once=once) for n, r in requests.items()}

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        came = mean(updates)
        after = self.locked(round, came)
        if self.lock:
            self.facts.setdefault("lock", []).append(self._noted(self.lock, round, updates, (theta, came, after)))
        return after

    def _noted(self, lock: ForgetLock, round: int, updates: dict[str, Update], way: tuple[Vector, ...]) -> dict[str, Any]:
        """What became of the lock in a round: the drift after it, what the clients added, and what bounds the two.

        way: the adapters before the round, as they came back, and after the server's half.
        """
        import torch

        before, came, after = (lock.drift(torch.from_numpy(theta)) for theta in way)
        rules, pushes = lock.aged(round - 1), [u.own[PUSH] for u in updates.values() if PUSH in u.own]
        return {
            "round": round,
            "drift": float(after.norm()),
            "added": float((came - before).norm()),
            "steps": max(int(u.metrics.get("steps", 0)) for u in updates.values()),
            "lr": self.context.experiment.learn.lr,
            "push": max(pushes, default=None),
            "strength": rules.strength,
            "share": rules.share,
        }


def aggregator(learn: TrainConfig) -> flower.FedAvg:
    """Flower's strategy that the experiment learns by. Raises ConfigError for settings that it does not know."""
    options: dict[str, Any] = dict(learn.aggregator_options)
    if "num_malicious_nodes" in options:
        options["num_malicious_nodes"] = int(options["num_malicious_nodes"])
    try:
        found: flower.FedAvg = getattr(flower, learn.aggregator)(**options)
    except TypeError as error:
        raise ConfigError(f"learn.aggregator_options: {learn.aggregator} does not take them: {error}") from None
    return found


def packed(lock: ForgetLock | None) -> tuple[str, dict[str, NDArray[np.uint8]]]:
    """Hash and bytes of the lock that clients are to train under; nothing if there is none, or it has no strength."""
    if lock is None or lock.strength == 0:
        return "", {}
    from safetensors.torch import save

    found = np.frombuffer(save(lock.tensors(half=True)), dtype=np.uint8)
    return hashlib.sha256(found.tobytes()).hexdigest(), {"lock": found}
