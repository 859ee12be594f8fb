"""The one class that runs rounds. A method overrides its verbs: prepare, instruct, combine, lock_after.

`Unlearning` itself is ordinary federated learning: FedAvg of LoRA adapters trained by InfoNCE. With all clients it is the
learn phase, without the forgotten ones it is the retrained reference, and after forgetting it is the hold phase.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray
from pydantic import Field

from ease_flwr.core.config import ConfigError, Experiment, ForgetConfig, Section, digest, strategy_values, validate
from ease_flwr.core.federation import Cost, Federation, Request
from ease_flwr.core.messages import ADAPTERS, Instruction, Update, pack, unpack

if TYPE_CHECKING:
    from torch import Tensor

    from ease_flwr.core.adapters import Block
    from ease_flwr.core.history import History
    from ease_flwr.core.lock import ForgetLock

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Setting:
    """What every strategy is given."""

    experiment: Experiment
    federation: Federation
    theta_0: Vector
    """Adapters before any learning, float32 (p,)."""
    blocks: tuple[Block, ...]
    """Where each adapter tensor lies in the vector, and its tower."""
    clients: tuple[str, ...]
    """Clients that train on what they keep, by name."""
    holders: tuple[str, ...] = ()
    """Clients that hold what is to be forgotten and can help; in the client scenario they are not among `clients`."""
    forget: ForgetConfig | None = None
    """What is to be forgotten; None while everybody learns everything."""

    @property
    def leaving(self) -> tuple[str, ...]:
        """Clients that the request of the client scenario names."""
        return self.forget.targets if self.forget else ()

    def weight(self, who: Iterable[str], among: Collection[str]) -> float:
        """Share of the pairs of a round's clients `among` that belongs to those of `who` that took part."""
        pairs = self.federation.pairs
        return sum(pairs[n] for n in who if n in among) / sum(pairs[n] for n in among)


class Unlearning:
    """Fine-tuning: the clients go on learning, and what is to be forgotten is simply left out."""

    class Params(Section):
        rounds: int = Field(8, ge=0)
        """Exchanges of the forget phase, all of them."""

    objectives: ClassVar[tuple[str, ...]] = ("contrastive",)
    """Modules of clients/ that this strategy asks for."""
    scenarios: ClassVar[tuple[str, ...]] = ("client", "class", "sample")
    """What it can forget."""
    history: ClassVar[Literal["", "updates", "rounds"]] = ""
    """What it reads: nothing, the updates of single clients, or the way of the global adapters too, which only plain FedAvg
    lets one compute from the updates."""
    holders: ClassVar[Literal["not asked", "help", "needed"]] = "not asked"
    """What those who hold what is to be forgotten do in the forget phase."""

    def __init__(
        self,
        setting: Setting,
        params: Any,
        lock: ForgetLock | None = None,
        overlap: int = 0,
        part: Literal["retain", "forget"] = "retain",
    ) -> None:
        """lock: what may not move.  overlap: returning pairs that the first client meets.  part: pairs to train on."""
        self.setting = setting
        self.params = params
        self.lock = lock
        self.overlap = overlap
        self.part = part
        self.cost = Cost()
        self.facts: dict[str, Any] = {}
        """What the method decided by itself, for results.json."""
        self.round = 1
        self.average = setting.experiment.learn.average
        """A phase ends with the mean of the global adapters of its last so many rounds."""
        self.flower = flower.FedAvg()
        self.left: Vector = np.zeros_like(setting.theta_0)

    @classmethod
    def check(cls, name: str, experiment: Experiment) -> Section:
        """Its settings in this experiment. Raises ConfigError for wrong ones, and for a request that it cannot serve."""
        if (scenario := experiment.forget.scenario) not in cls.scenarios:
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
        return validate(cls.Params, strategy_values(name, experiment), f"strategy {name}")

    # ---- the verbs ----------------------------------------------------------------------------------------

    def prepare(self, theta: Vector, history: History) -> Vector:
        """Once, before the first round: read the history, return the adapters to start from."""
        return theta

    def instruct(self, phase: str, round: int) -> dict[str, Request]:
        """Who does what in this round, by client name.

        While forgetting, the server projects; the clients' half begins with the hold phase.
        """
        lock, packed = self._packed_lock() if phase.startswith("hold") else ("", {})
        proximal = getattr(self.flower, "proximal_mu", 0.0)
        requests = {}
        for i, name in enumerate(self.setting.clients):
            overlap = self.overlap if i == 0 else 0
            concerned = overlap or name in self.setting.holders
            instruction = Instruction(
                phase=phase,
                round=round,
                train=self.setting.experiment.learn,
                overlap=overlap,
                forget=self.setting.forget if concerned else None,
                part=self.part,
                lock=lock,
                proximal=proximal,
            )
            requests[name] = Request(instruction, once=packed)
        return requests

    def combine(self, theta: Vector, updates: dict[str, Update]) -> Vector:
        """The next global adapters: Flower's weighted mean, then the server's half of the lock."""
        return self.locked(self.mean(updates))

    def lock_after(self, theta: Vector) -> ForgetLock | None:
        """What may not move away from theta, where the forget phase ended, in later rounds; None locks nothing."""
        return None

    # ---- what a method may use ------------------------------------------------------------------------------------

    def mean(self, updates: dict[str, Update]) -> Vector:
        """Flower's FedAvg of the clients' adapters, weighted by examples. Updates come sorted by name."""
        record, _ = self.flower.aggregate_train(self.round, [u.message() for u in updates.values()])
        assert record is not None  # updates are valid and not empty
        mean: Vector = unpack(record)[ADAPTERS]
        return mean

    def locked(self, theta: Vector) -> Vector:
        """theta after the server's half of the lock."""
        return theta if self.lock is None else on_numpy(self.lock.aged(self.round - 1).take_back, theta)

    def _packed_lock(self) -> tuple[str, dict[str, NDArray[np.uint8]]]:
        """Hash and bytes of the lock that clients are to train under; nothing if there is none, or it has no strength."""
        if self.lock is None or self.lock.strength == 0:
            return "", {}
        from safetensors.torch import save

        packed = np.frombuffer(save(self.lock.tensors(half=True)), dtype=np.uint8)
        return hashlib.sha256(packed.tobytes()).hexdigest(), {"lock": packed}

    def learning(self) -> Unlearning:
        """This strategy with the aggregator that the experiment learns by."""
        options: dict[str, Any] = dict(self.setting.experiment.learn.aggregator_options)
        name = self.setting.experiment.learn.aggregator
        if "num_malicious_nodes" in options:
            options["num_malicious_nodes"] = int(options["num_malicious_nodes"])
        try:
            self.flower = getattr(flower, name)(**options)
        except TypeError as error:
            raise ConfigError(f"learn.aggregator_options: {name} does not take them: {error}") from None
        return self

    # ---- the loop -------------------------------------------------------------------------------------------------

    def run(
        self,
        phase: str,
        theta: Vector,
        rounds: int,
        report: Callable[[Progress], None],
        first: int = 1,
        history: History | None = None,
        question: Callable[[int], Instruction | None] = lambda round: None,
    ) -> tuple[Vector, Cost]:
        """Rounds first .. first + rounds - 1 of a phase; returns the mean of the last few global adapters.

        history: where weighted updates are recorded, if anywhere.  question: the evaluation of the adapters before a round, if
        clients are to do one with its training.
        """
        told: set[str] = set()
        recent: deque[Vector] = deque(maxlen=self.average)
        for round in range(first, first + rounds):
            self.round = round
            requests = self.drawn(self.instruct(phase, round), phase)
            before = self.rounded(theta)
            if isinstance(self.flower, flower.fedopt.FedOpt):
                self.flower.current_arrays = {ADAPTERS: before}
            elif isinstance(self.flower, flower.FedAvgM):
                self.flower.current_arrays = pack({ADAPTERS: before})
            updates = self.setting.federation.train(before, requests, self.cost, told, question(round))
            with self.cost.on_server():
                if history is not None:
                    total = sum(u.examples for u in updates.values())
                    for name, update in updates.items():
                        history.append(round, name, np.float32(update.examples / total) * (update.adapters - before))
                theta = self.combine(before, updates)
                recent.append(theta)
                if round == first + rounds - 1:
                    theta = np.asarray(np.mean(recent, axis=0, dtype=np.float64), dtype=np.float32)
            report(Progress(phase, round, first + rounds - 1, len(requests), updates, before, theta, self.cost))
        return theta, self.cost

    def rounded(self, theta: Vector) -> Vector:
        """theta as it travels: with federation.half rounded to float16, and the rest kept for the next time."""
        if not self.setting.experiment.federation.half:
            return theta
        wanted = theta + self.left
        sent = wanted.astype(np.float16).astype(np.float32)
        self.left = wanted - sent
        return sent

    def drawn(self, requests: dict[str, Request], phase: str) -> dict[str, Request]:
        """Those who take part in this round: a share of the clients, drawn by name, and everybody with a special job."""
        experiment = self.setting.experiment
        jobs = {n: r.instruction for n, r in requests.items()}
        plain = sorted(n for n, job in jobs.items() if job.objective == "contrastive" and not job.beside)
        count = max(1, round(experiment.learn.fraction * len(plain))) if plain else 0
        if count == len(plain):
            return requests
        rng = np.random.default_rng(int(digest(experiment.seed, phase, self.round)[:16], 16))
        skipped = set(rng.permutation(plain)[count:].tolist())
        return {n: r for n, r in requests.items() if n not in skipped}


def on_numpy(function: Callable[[Tensor], Tensor], theta: Vector) -> Vector:
    """function(theta) for a function of tensors."""
    import torch

    return function(torch.from_numpy(theta)).numpy()


@dataclass(frozen=True)
class Progress:
    """Where a phase is after a round."""

    phase: str
    round: int
    last: int
    asked: int
    updates: dict[str, Update]
    before: Vector
    """The adapters that the round began with."""
    theta: Vector
    """And those after it, or after the phase."""
    cost: Cost
