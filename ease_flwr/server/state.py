"""The state of a federation between two phases, and what all phases work with. Values: a phase returns another state."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ease_flwr.config import Experiment, ForgetRequest
from ease_flwr.exchange.federation import Federation
from ease_flwr.server.parties import RollCall
from ease_flwr.store.cost import Cost
from ease_flwr.store.run import Run

if TYPE_CHECKING:
    from ease_flwr.model.adapters import AdaptedModel
    from ease_flwr.model.lock import ForgetLock
    from ease_flwr.store.history import History

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Checkpoint:
    """Adapters, and which requests they have forgotten or never saw."""

    theta: Vector
    forgotten: tuple[str, ...]


@dataclass(frozen=True)
class FederationState:
    """Where a run is."""

    theta: Vector
    """The global adapters, float32 (p,)."""
    history: History | None = None
    """Updates of the learn phase."""
    lock: ForgetLock | None = None
    departed: frozenset[str] = frozenset()
    """Clients that left by a request."""
    absent: frozenset[str] = frozenset()
    """Clients that have stopped answering since this process began: the next one asks them again."""
    served: tuple[ForgetRequest, ...] = ()
    """Requests that are done, in order."""
    rounds: int = 0
    """Rounds that the global adapters have had in all."""
    learnt: int = 0
    """Rounds of the learn phase."""
    usual: dict[str, float] = field(default_factory=dict)
    """By kind of work, length of an update in the learn phase, see exchange/bounds.py."""
    judged: tuple[dict[str, Any], ...] = ()
    """What patience saw in it, see Patience."""
    unlearned_at: int = 0
    """How many of them when the last request was done."""
    continued: int = 0
    """Rounds of the continuation since then."""
    models: dict[str, Checkpoint] = field(default_factory=dict)
    """Checkpoints to be judged at the end, by name."""
    costs: dict[str, Cost] = field(default_factory=dict)
    facts: tuple[dict[str, Any], ...] = ()
    """What the methods said of each request."""
    failures: tuple[dict[str, Any], ...] = ()
    remarks: tuple[str, ...] = ()
    """What the numbers do not say by themselves, a sentence each."""

    @property
    def forgotten(self) -> tuple[str, ...]:
        """Ids of the requests that are done."""
        return tuple(r.id for r in self.served)

    def with_model(self, name: str, theta: Vector, *replaced: str) -> FederationState:
        """Remember a checkpoint under this name, unless it was purged. replaced: names that no longer hold."""
        models = {n: c for n, c in self.models.items() if n not in replaced}
        return replace(self, models={**models, name: Checkpoint(theta, self.forgotten)} if theta.size else models)

    def with_cost(self, phase: str, cost: Cost) -> FederationState:
        """Add to what a phase has cost."""
        return replace(self, costs={**self.costs, phase: self.costs.get(phase, Cost()) + cost})


@dataclass(frozen=True)
class Server:
    """What every phase works with: the run, the experiment, the clients, the model."""

    run: Run
    experiment: Experiment
    federation: Federation
    """All clients that were there at the start."""
    roll_call: RollCall
    model: AdaptedModel

    def here(self, state: FederationState) -> Federation:
        """The federation without those that do not answer any more."""
        return self.federation.without(state.absent)
