"""A method of unlearning, server half: how it prepares, whom it asks for what in a round, and how it combines the answers.

`Method` itself is fine-tuning: the clients that stay go on learning, and what is to be forgotten is left out. The rounds are
run by ease_flwr/exchange/rounds.py, the same for every method and every phase.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray
from pydantic import Field

from ease_flwr.config import ConfigError, Experiment, ForgetSet, Section, TrainConfig, Union, strategy_values, validate
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.federation import Federation, Request
from ease_flwr.exchange.messages import ADAPTERS, Learn, unpack
from ease_flwr.store.cost import Meter

if TYPE_CHECKING:
    from torch import Tensor

    from ease_flwr.model.adapters import Block
    from ease_flwr.model.lock import ForgetLock
    from ease_flwr.store.history import History

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class MethodContext:
    """What every method is given."""

    experiment: Experiment
    federation: Federation
    phase: str
    """Name of the phase: with the number of a round it decides the order of data."""
    theta_0: Vector
    """Adapters before any learning, float32 (p,)."""
    blocks: tuple[Block, ...]
    """Where each adapter tensor lies in the vector, and its tower."""
    clients: tuple[str, ...]
    """Clients that train on what they keep, by name."""
    forget_clients: tuple[str, ...] = ()
    """Clients that have what is to be forgotten and can help; in the client scenario they are not among `clients`."""
    forget: ForgetSet | None = None
    """What is to be forgotten; None while everybody learns everything."""
    order: int = 0
    """Another number is another order of data, in everything else the same."""
    without: Mapping[str, Union] = field(default_factory=dict)
    """By client, all that it leaves out: what was forgotten before, and what is to be forgotten now."""
    learnt: int = 0
    """Rounds of the learn phase."""
    away: tuple[str, ...] = ()
    """Clients that stay, and do not answer now or may not train on what they keep: what they have contributed is kept, and
    nobody asks them."""

    @property
    def leaving(self) -> tuple[str, ...]:
        """Clients that leave by this request: those that the client scenario names, nobody in the others."""
        return self.forget.leaving if self.forget else ()

    def weight(self, who: Iterable[str], among: Collection[str]) -> float:
        """Share of the pairs of a round's clients `among` that belongs to those of `who` that took part."""
        pairs = {n: min(self.federation.pairs[n], self.federation.most) for n in among}
        return sum(pairs[n] for n in who if n in among) / sum(pairs.values())


class PhaseParams(Section):
    """What every method says of its forget phase."""

    rounds: int | None = Field(None, ge=1)
    """Exchanges of the forget phase, all of them; None: one for seven rounds of the learn phase."""
    lr_end: float = Field(0.25, gt=0, le=1)
    """Learning rate of the retained clients in the last round, as a share of the learn phase's, with which they begin; it falls
    in a line."""


class Method:
    """Fine-tuning: the clients go on learning, and what is to be forgotten is simply left out."""

    class Params(PhaseParams):
        """A method of its own adds what it needs."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive",)
    """Modules of clients/ that this method asks for."""
    scenarios: ClassVar[tuple[str, ...]] = ("client", "class", "sample")
    """What it can forget."""
    history: ClassVar[Literal["", "updates", "rounds"]] = ""
    """What it reads: nothing, the updates of single clients, or the way of the global adapters too, which only plain FedAvg
    lets one compute from the updates."""
    forget_clients: ClassVar[Literal["not asked", "help", "needed"]] = "not asked"
    """What those who have what is to be forgotten do in the forget phase."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Settings that had another name before version 0.2."""

    def __init__(self, context: MethodContext, params: Any, lock: ForgetLock | None = None) -> None:
        """lock: what earlier requests locked, and may not move in these rounds either."""
        self.context = context
        self.params = params
        self.lock = lock
        self.facts: dict[str, Any] = {}
        """What the method decided by itself, for results.json."""
        self.meter = Meter()
        """What `prepare` has spent on exchanges of its own."""
        self.reads_history = bool(self.history)
        """Whether the recorded updates are needed: they are part of what the server has to keep."""
        self.failures: list[dict[str, Any]] = []
        """Answers that did not come in them, or were not fit to be used, see training.Trained."""
        self.average = max(1, min(context.experiment.learn.average, self.rounds // 2))
        """A phase ends with the mean of the global adapters of its last so many rounds, half a short forget phase at most."""

    @classmethod
    def check(cls, name: str, experiment: Experiment, scenario: str) -> Section:
        """Its settings in this experiment. Raises ConfigError for wrong ones, and for a scenario that it cannot serve."""
        if scenario not in cls.scenarios:
            raise ConfigError(f"strategy {name} cannot forget a {scenario}, only: {', '.join(cls.scenarios)}")
        if cls.history == "rounds":
            if experiment.learn.aggregator not in ("FedAvg", "FedProx"):
                raise ConfigError(
                    f"strategy {name} follows rounds of FedAvg, learn.aggregator={experiment.learn.aggregator} has others"
                )
            if experiment.history.rank:
                raise ConfigError(
                    f"strategy {name} needs every round, history.rank={experiment.history.rank} is a sketch: set 0"
                )
        values = strategy_values(name, experiment)
        for old, new in cls.renamed.items():
            if old in values and not (old == new.partition(".")[0] and isinstance(values[old], Mapping)):
                raise ConfigError(f"strategy {name}: {old} is called {new} since version 0.2: use that name")
        return validate(cls.Params, values, f"strategy {name}")

    @classmethod
    def needs_help(cls, params: Any, scenario: str) -> bool:
        """Whether it can do nothing where none of those who have what is to be forgotten answers."""
        return cls.forget_clients == "needed"

    @classmethod
    def rounds_of(cls, params: Any, learnt: int) -> int:
        """Exchanges of the forget phase after so many rounds of learning."""
        return max(1, learnt // 7) if params.rounds is None else int(params.rounds)

    @property
    def rounds(self) -> int:
        """Exchanges of the forget phase."""
        return self.rounds_of(self.params, self.context.learnt)

    # ---- the verbs: what a method of its own may say -----------------------------------------------------------------------

    def prepare(self, theta: Vector, history: History) -> Vector:
        """Once, before the first round: read the history, return the adapters to start from."""
        return theta

    def requests(self, round: int) -> dict[str, Request]:
        """Who does what in this round, by client name."""
        return self.learners(round)

    def combine(self, round: int, theta: Vector, updates: dict[str, Update]) -> Vector:
        """The next global adapters, from those that the round began with and what came back, sorted by name."""
        return self.averaged(round, updates)

    def lock_after(self, theta: Vector) -> ForgetLock | None:
        """What may not move away from theta, where the forget phase ended, in later rounds; None locks nothing."""
        return None

    # ---- what it may say them with -----------------------------------------------------------------------------------------

    def learners(self, round: int, **changes: Any) -> dict[str, Request]:
        """The clients that stay, training by InfoNCE on what they keep. changes: fields of their instruction, see Learn."""
        context = self.context
        told = {"phase": context.phase, "round": round, "order": context.order, "train": self.plan(round), **changes}
        return {n: Request(Learn(**{"without": context.without.get(n, ()), **told})) for n in context.clients}

    def plan(self, round: int) -> TrainConfig:
        """How the clients that stay train in this round: as in the learn phase, at a rate that falls to `lr_end` of its own."""
        plain = self.context.experiment.learn
        share = 1 - (1 - self.params.lr_end) * (round - 1) / max(1, self.rounds - 1)
        return plain.model_copy(update={"lr": share * plain.lr})

    def averaged(self, round: int, updates: dict[str, Update]) -> Vector:
        """Their weighted mean, after the server's half of the older lock."""
        return self.locked(round, mean(updates))

    def locked(self, round: int, theta: Vector) -> Vector:
        """theta after the server's half of the older lock."""
        return theta if self.lock is None else on_numpy(self.lock.aged(round - 1).take_back, theta)


def mean(updates: Mapping[str, Update], aggregator: flower.FedAvg | None = None, round: int = 1) -> Vector:
    """The clients' adapters, weighted by examples, by Flower's FedAvg or another of its aggregators; updates sorted by name."""
    record, _ = (aggregator or flower.FedAvg()).aggregate_train(round, [u.message() for u in updates.values()])
    assert record is not None  # updates are valid and not empty
    found: Vector = unpack(record)[ADAPTERS]
    return found


def on_numpy(function: Callable[[Tensor], Tensor], theta: Vector) -> Vector:
    """function(theta) for a function of tensors."""
    import torch

    return function(torch.from_numpy(theta)).numpy()
