"""LoRA on both towers by peft, and the adapter vector: the one flat array that travels, is averaged and is excised.

The vector theta is concat_m [vec A_m ; vec B_m] over the adapted modules m, image tower first, then text, float32,
length p. The effective weight of a module is W_m + (alpha / rank) B_m A_m. logit_scale stays frozen.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ease_flwr.config import ConfigError, LoraConfig, ModelConfig
from ease_flwr.model import backbone

Tower = Literal["visual", "text"]
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """One adapter tensor inside the vector."""

    name: str
    tower: Tower
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        return self.start + self.size


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """A frozen backbone with LoRA attached, and the order of its adapter vector."""

    base: backbone.Backbone
    model: peft.PeftModel
    blocks: tuple[Block, ...]
    parameters: tuple[torch.nn.Parameter, ...]
    initial: Vector
    """theta_0, before any learning."""
    merged: tuple[tuple[torch.nn.Module, str, torch.Tensor], ...]
    """Frozen weights that peft changes: (module, name, value). See `set`."""
    trunk: Callable[[torch.Tensor], torch.Tensor]
    """Frozen beginning of the image tower; `encode_image` takes its output. See backbone.cut_trunk."""
    device: torch.device
    """Where the towers are. Everything else stays on the CPU: a message, the data, the loss."""
    half: bool
    """Whether the towers run in bfloat16."""

    @property
    def clip(self) -> CLIP:
        """The open_clip model inside, adapters included."""
        return self.model.base_model.model

    @property
    def size(self) -> int:
        """p, the length of the adapter vector."""
        return self.blocks[-1].stop

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit-length embeddings, float32 (n, d), of images after the trunk, with gradients."""
        return self._embed(self.clip.encode_image, images.float())

    def embed_texts(self, tokens: torch.Tensor) -> torch.Tensor:
        """Unit-length embeddings, float32 (n, d), of token rows (n, length), with gradients."""
        return self._embed(self.clip.encode_text, tokens)

    def _embed(self, encode: Callable[..., torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return encode(inputs.to(self.device), normalize=True).float().cpu()

    def get(self) -> Vector:
        """The adapter vector, float32 (p,)."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters]).cpu().numpy()

    @torch.no_grad()
    def set(self, vector: Vector) -> None:
        """Put a vector of float32 (p,) into the model. Raises ValueError on another shape.

        Also puts the frozen attention weights back: in each forward pass peft adds the adapter to them and subtracts it
        again, which leaves rounding errors behind that would grow and differ from process to process.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"adapter vector of shape {vector.shape}, this model has ({self.size},)")
        flat = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32))
        for block, parameter in zip(self.blocks, self.parameters, strict=True):
            parameter.copy_(flat[block.start : block.stop].view(block.shape))
        for module, name, value in self.merged:
            getattr(module, name).data.copy_(value)

    def save(self, vector: Vector, folder: Path) -> None:
        """Write a PEFT folder (adapter_config.json, adapter_model.safetensors) that PeftModel.from_pretrained loads."""
        self.set(vector)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft asks a model hub about a base model that has no name there
            self.model.save_pretrained(str(folder))


def read(folder: Path, blocks: tuple[Block, ...]) -> Vector:
    """The adapter vector of a PEFT folder, as `save` writes them. Raises ConfigError if it is not there or of another shape."""
    file = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
        parts = [tensors["base_model.model." + b.name.replace(".default", "")] for b in blocks]
    except (OSError, KeyError, SafetensorError) as error:
        raise ConfigError(f"{file}: not the adapters of this experiment: {error}") from None
    if wrong := [b.name for b, p in zip(blocks, parts, strict=True) if tuple(p.shape) != b.shape]:
        raise ConfigError(f"{file}: {wrong[0]} has another shape than in this experiment")
    return np.concatenate([p.reshape(-1) for p in parts]).astype(np.float32)


def target_modules(model: torch.nn.Module, lora: LoraConfig) -> list[str]:
    """Full names of the modules that get an adapter. Raises ConfigError if a tower has none."""
    found: dict[Tower, list[str]] = {"visual": [], "text": []}
    for name, _ in model.named_modules():
        if not any(name == t or name.endswith(f".{t}") for t in lora.targets):
            continue
        tower: Tower = "visual" if name.startswith("visual.") else "text"
        parts = name.split(".")
        first = lora.visual_from if tower == "visual" else lora.text_from
        if "resblocks" in parts and int(parts[parts.index("resblocks") + 1]) < first:
            continue
        found[tower].append(name)
    empty = [tower for tower, names in found.items() if not names]
    if empty:
        raise ConfigError(f"lora.targets: nothing called {', '.join(lora.targets)} to adapt in the {empty[0]} tower")
    return found["visual"] + found["text"]


def device_of(config: ModelConfig) -> torch.device:
    """Where the towers run in this process. Raises ConfigError where a GPU is asked for and there is none."""
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError("model.device=cuda: torch sees no GPU in this process; give it one (--client-gpus) or set auto")
    if config.device == "cpu" or not there:
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False  # as exact as the matrix products are
    return torch.device("cuda")


def attach(base: backbone.Backbone, lora: LoraConfig, seed: int, how: ModelConfig | None = None) -> AdaptedModel:
    """LoRA on a backbone (which is changed in place), A drawn from N(0, 1 / fan-in) by `seed`, B = 0: theta_0.

    how: device, precision and checkpointing.

    The draw is numpy's, so that every host gets the same theta_0 whatever its version of torch.
    """
    how = how or ModelConfig()
    device = device_of(how)
    base.model.to(device)
    if how.checkpointing:
        base.model.set_grad_checkpointing(True)
    exactly = "|".join(re.escape(n) for n in target_modules(base.model, lora))  # a list would match by suffix
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, bias="none", target_modules=exactly)
    model = peft.get_peft_model(base.model, config)
    named = {n.removeprefix("base_model.model."): p for n, p in model.named_parameters() if "lora_" in n}
    order = sorted(named, key=lambda n: not n.startswith("visual."))  # stable: the model's own order inside a tower
    blocks, start = [], 0
    rng = np.random.default_rng((seed, 0x10FA))
    for name in order:
        parameter = named[name]
        parameter.requires_grad_(True)
        block = Block(name, "visual" if name.startswith("visual.") else "text", tuple(parameter.shape), start)
        blocks.append(block)
        start = block.stop
        with torch.no_grad():
            if "lora_B" in name:
                parameter.zero_()
            else:
                draw = rng.standard_normal(block.shape) / math.sqrt(math.prod(block.shape[1:]))
                parameter.copy_(torch.from_numpy(draw.astype(np.float32)))
    model.eval()
    merged: list[tuple[torch.nn.Module, str, torch.Tensor]] = []
    for attention in model.modules():
        if isinstance(attention, peft.tuners.lora.layer.MultiheadAttention):
            inner: Any = attention.base_layer
            for module, name in ((inner, "in_proj_weight"), (inner.out_proj.base_layer, "weight")):
                merged.append((module, name, getattr(module, name).detach().clone()))
    parameters = tuple(named[n] for n in order)
    initial = torch.cat([p.detach().reshape(-1) for p in parameters]).cpu().numpy()
    trunk, half = backbone.cut_trunk(base), how.precision == "bfloat16"
    return AdaptedModel(base, model, tuple(blocks), parameters, initial, tuple(merged), trunk, device, half)


@lru_cache(maxsize=1)
def load(model: ModelConfig, lora: LoraConfig, seed: int) -> AdaptedModel:
    """The adapted model of an experiment, one a process. Its adapters hold whatever was `set` last."""
    backbone.load.cache_clear()  # attach changes the backbone in place
    adapted = attach(backbone.load(model), lora, seed, model)
    backbone.load.cache_clear()
    return adapted


def sha256(vector: Vector) -> str:
    """Identity of an adapter vector: sha256 of its little-endian float32 bytes, 64 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").tobytes()).hexdigest()
