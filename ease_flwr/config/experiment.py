"""What an experiment is: its sections. Every field is documented here, in data.py and in model.py, and nowhere else."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from ease_flwr.config.data import DataConfig
from ease_flwr.config.model import LoraConfig, ModelConfig, TrainConfig
from ease_flwr.config.request import ForgetConfig
from ease_flwr.config.section import NAME, Section, afterwards, among, operational

SIZE = re.compile(rf"{NAME.pattern}:[1-9][0-9]{{0,14}}")


class HistoryConfig(Section):
    rank: int = Field(0, ge=0)
    """0 keeps every update; q keeps a sketch of rank q for each client, constant in the number of rounds."""
    half: bool = False
    """Whether bfloat16 is enough on disk."""


class ContinuationConfig(Section):
    rounds: int = Field(5, ge=0)
    """Ordinary rounds of the retained clients after forgetting, with the lock on."""
    overlap: int = Field(4, ge=0)
    """Fresh pairs about forgotten knowledge that the first retained client meets in these rounds (the reference too)."""


class FederationConfig(Section):
    half: bool = False
    """Adapters travel in half precision: they go out rounded to float16, and what rounding left over is added to the next
    round's (error feedback, Seide et al. 2014; Karimireddy et al., arXiv 1901.09847); clients send their change in float16."""
    norm_bound: float = Field(20.0, gt=1)
    """An update that is more than so many times as long as is usual is cut to what is usual: the median of its round, or of
    earlier rounds (docs/security.md)."""
    weight_bound: float = Field(10.0, ge=1)
    """What one client says that it has, and that it has judged, counts for so many times the median of all clients at most."""
    sizes: tuple[str, ...] = operational(())
    """NAME:PAIRS, as their owners have told the operator: who says that it has more takes no part."""
    quorum: float = operational(1.0, gt=0, le=1)
    """Share of the asked clients that must answer; below it the run stops."""
    deadline: float = operational(600, gt=0)
    """Seconds a client has for one answer; then it is asked once more."""
    start_timeout: float = operational(120, gt=0)
    """Seconds to wait at the start until all nodes are there."""

    @model_validator(mode="after")
    def _sizes_are_numbers(self) -> FederationConfig:
        if wrong := [s for s in self.sizes if not SIZE.fullmatch(s)]:
            raise ValueError(f"sizes: {wrong[0]!r} is not NAME:PAIRS, for example hospital-a:1200")
        if len(self.stated) < len(self.sizes):  # of two the last would count
            raise ValueError("sizes: a name is there twice: say its size once")
        return self

    @property
    def stated(self) -> dict[str, int]:
        """`sizes` by name."""
        return {name: int(pairs) for name, _, pairs in (s.rpartition(":") for s in self.sizes)}


class EvaluationConfig(Section):
    every: int = afterwards(10, ge=0)
    """Validation recall every so many rounds of a phase (0: only at its end)."""
    reference: Literal["retrain", "none"] = afterwards("retrain")
    """Whether the model is also trained without what is to be forgotten, to compare with."""
    references: int = afterwards(1, ge=1)
    """How many times the reference is trained (retrain, retrain_2, ...), each with another order of data: two show the noise of
    every number. `ease compare` and `ease audit --level full` train two."""
    equal: bool = afterwards(True)
    """Whether the reference goes on for as many rounds as forgetting took (retrain_equal), and through the continuation."""
    split: Literal["test", "validation"] = afterwards("test")
    """Pairs that the models are judged on at the end; validation while settings are being chosen."""
    order_seed: int = Field(0, ge=0)
    """Changes the order of training data only; two retrainings that differ in it show the noise of every gap."""


class AuditConfig(Section):
    """How near to retraining is near enough, for the verdict."""

    level: Literal["quick", "full", "none"] = "quick"
    """What a run asks at its end; `ease audit RUN --level full` asks the rest later."""
    recall: float = Field(3.0, gt=0)
    """Points of R@1 on what is to be forgotten, and on what others know too, above or below."""
    retained: float = Field(3.0, gt=0)
    """Points of R@1 below it on what is kept."""
    people: float = Field(15.0, gt=0)
    """Points of R@1 for the one whom the two models differ most for."""
    distance: float = Field(0.1, gt=0)
    """Mean distance of the similarities of single pairs."""
    auc: float = Field(0.05, gt=0)
    """AUC of membership attacks and of the linear probe."""
    relearn: float = Field(10.0, gt=0)
    """Points of R@1 after learning it again."""


class Experiment(Section):
    name: str = afterwards("personas")
    """Name of the experiment, with its variants: conf/experiment/NAME.yaml and conf/variant/."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Decides the world, the partition, the adapters at the start and every order of data."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    learn: TrainConfig = TrainConfig()
    forget: ForgetConfig = afterwards(ForgetConfig(targets=("client-0",)))
    history: HistoryConfig = HistoryConfig()
    continuation: ContinuationConfig = afterwards(ContinuationConfig())
    federation: FederationConfig = FederationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    audit: AuditConfig = operational(AuditConfig())
    tracking: Literal["", "tensorboard", "trackio", "wandb"] = operational("")
    """Where the numbers of every event go besides metrics.jsonl; what it names must be installed."""
    strategies: dict[str, dict[str, Any]] = afterwards({})
    """Settings of single strategies that this experiment needs to differ from their defaults."""
    strategy: dict[str, Any] = afterwards({})
    """Settings of the strategy that runs, e.g. strategy.rounds=3; they go before all others."""

    @model_validator(mode="after")
    def _targets_exist(self) -> Experiment:
        names = self.data.client_names
        if not names:  # the index knows them, and is read later
            return self
        if strange := sorted(set(self.data.backdoor.clients) - set(names)):
            raise ValueError(f"data.backdoor.clients: no client {', '.join(strange)}; there are {', '.join(names)}")
        named = self.forget.named
        if wrong := sorted(named - set(names)):
            raise ValueError(f"forget.targets: no client {', '.join(wrong)}; {among(wrong[0], names)}")
        if self.forget.scenario == "client" and len(named) >= len(names):
            raise ValueError("forget.targets: all clients are to be forgotten, nobody would be left")
        return self
