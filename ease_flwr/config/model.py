"""The sections about the model and its training."""

from __future__ import annotations

from math import isfinite
from typing import Literal

from pydantic import Field, model_validator

from ease_flwr.config.section import Section

SHORTEST = 4
"""Tokens that a caption needs."""


class ModelConfig(Section):
    name: str = ""
    """open_clip model name, e.g. ViT-B-32; local-dir:FOLDER and hf-hub:OWNER/NAME are published models, which bring their
    weights; "" when `weights` brings its own configuration."""
    weights: str = ""
    """A base-model .json of `ease make-base`; the folder of a published open_clip model (open_clip_config.json and
    open_clip_model.safetensors); a .safetensors file (with an open_clip config beside it, under the same name and .json, when
    `name` is ""); an open_clip pretrained tag; or "" for seeded random weights."""
    quick_gelu: bool | None = None
    """Whether the activations of a .safetensors file under a `name` are QuickGELU (OpenAI's are). It must be said where
    open_clip has a name for either."""
    context: int = Field(0, ge=0)
    """Tokens of text the model looks at, 4 or more; 0 is the model's own number. Fewer are faster; longer captions are cut."""
    mean: tuple[float, ...] = ()
    """Per-channel mean of the image normalisation (0..1 scale). () is what the model says, and where it says nothing what
    OpenAI's have. A base-model .json always brings its own."""
    std: tuple[float, ...] = ()
    """Per-channel standard deviation of the image normalisation, the same way."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the towers run (node config `device` says it for one host); auto: on a GPU if the process was given one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the towers; with bfloat16 (autocast) adapters, their gradients and the loss stay float32."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of kept: less memory, a third more work."""
    micro_batch: int = Field(0, ge=0)
    """Pairs that go through the towers at once in training; 0: all of a batch. With fewer, memory is that of so many pairs
    whatever the batch is, for a third more work; the loss is of the whole batch."""

    @model_validator(mode="after")
    def _can_be(self) -> ModelConfig:
        if 0 < self.context < SHORTEST:
            raise ValueError(f"context={self.context}: a caption has a start, an end and words: {SHORTEST} or more, or 0")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            said = f"{name}={','.join(map(str, numbers))}"
            if len(numbers) not in (0, 3) or not all(map(isfinite, numbers)):
                raise ValueError(f"{said}: expected three numbers, one for each colour")
            if not all(0 <= n <= 1 and (n or name == "mean") for n in numbers):
                raise ValueError(f"{said}: colours are numbers from 0 to 1: divide those of 0 to 255 by 255; std is above 0")
        return self


class LoraConfig(Section):
    rank: int = Field(8, ge=1, le=4096)
    """Rank r of every adapter."""
    alpha: int = Field(16, ge=1)
    """LoRA alpha: the update is (alpha / r) B A."""
    targets: tuple[str, ...] = ("attn", "c_fc", "c_proj")
    """Module names (last parts of the dotted path) that get an adapter, in both towers."""
    visual_from: int = Field(0, ge=0)
    """First transformer block of the image tower that is adapted."""
    text_from: int = Field(0, ge=0)
    """First transformer block of the text tower that is adapted."""


class TrainConfig(Section):
    rounds: int = Field(30, ge=1)
    """Federated rounds; with `patience` the most."""
    epochs: int = Field(3, ge=1)
    """Local epochs a round."""
    batch: int = Field(64, ge=2)
    """Pairs in a batch; the InfoNCE loss contrasts them with each other."""
    lr: float = Field(5e-3, gt=0)
    """AdamW learning rate of the adapters (no weight decay)."""
    clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    aggregator: Literal["FedAvg", "FedProx", "FedAvgM", "FedAdam", "FedMedian", "FedTrimmedAvg", "Krum"] = "FedAvg"
    """Flower's strategy that aggregates while the federation learns (the retrained reference too); then it is FedAvg."""
    aggregator_options: dict[str, float] = Field(default_factory=dict)
    """Its own settings, by Flower's names, e.g. server_momentum, eta, beta, num_malicious_nodes, proximal_mu."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the clients that take part in a round, drawn by name and seed. Who has to forget is always asked."""
    average: int = Field(4, ge=1)
    """A phase ends with the mean of the global adapters of its last so many rounds; single rounds fluctuate."""
    patience: int = Field(0, ge=0)
    """Learning stops when validation recall of the clients' own pairs has not risen so many judgements in a row; retrainings
    take as many rounds as learning did. 0: `rounds` it is."""
    judge_every: int = Field(5, ge=1)
    """Rounds from one of these judgements to the next."""
