"""The client's half of the forget lock: where its directions come from, and what it does after each step of the optimiser."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ease_flwr.exchange.answers import PUSH

if TYPE_CHECKING:
    from ease_flwr.clients.base import State
    from torch import Tensor

    from ease_flwr.model.lock import ForgetLock


def received(sha256: str, extras: dict[str, NDArray[np.uint8]], state: State) -> ForgetLock:
    """The forget lock of this hash, as it came or as this client keeps it. Raises ValueError where it has neither."""
    from safetensors.torch import load

    from ease_flwr.model.lock import ForgetLock

    packed = extras.get("lock")
    if packed is None:
        packed = state.load("lock")
    if packed is None or hashlib.sha256(packed.tobytes()).hexdigest() != sha256:
        raise ValueError("forget lock is missing here: it must be sent again")
    state.save("lock", packed)
    return ForgetLock.from_tensors(load(packed.tobytes()))


class Held:
    """Adapters (p,) under a lock: what the optimiser moved along locked directions is measured, and then held back.

    G is the largest ||U^T u|| of all steps, where -lr u is what a step moved before the proximal step. So Adam's scaling and
    clipping are part of u. G stays on the device until it is asked for.
    """

    def __init__(self, lock: ForgetLock, theta: Tensor, lr: float) -> None:
        self.lock, self.theta, self.lr = lock, theta, lr
        self.before = theta.clone()
        self.most = theta.new_zeros(())

    def stepped(self) -> None:
        """After a step of the optimiser."""
        self.most = self.most.maximum(self.lock.along(self.before - self.theta).norm() / self.lr)
        self.theta.copy_(self.lock.proximal_step(self.theta, self.lr))
        self.before.copy_(self.theta)

    def metrics(self) -> dict[str, Any]:
        """G, by the name under which it travels."""
        return {PUSH: self.most.item()}
