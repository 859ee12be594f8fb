"""LoRA on both towers by peft, and the adapter vector: the one flat array that travels, is averaged and is excised.

The vector theta is concat_m [vec A_m ; vec B_m] over the adapted modules m, image tower first, then text, float32,
length p. The effective weight of a module is W_m + (alpha / rank) B_m A_m. logit_scale stays frozen.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.checkpoint import checkpoint

from ease_flwr.config import ADAPTERS, ConfigError, LoraConfig, ModelConfig
from ease_flwr.model import backbone, targets, towers
from ease_flwr.model.hub import line
from ease_flwr.model.lora import LAYERS

Tower = targets.Tower
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
    theta: torch.Tensor
    """The adapter vector, float32 (p,), on the device; the parameters are views of it."""
    trunk: Callable[[torch.Tensor], torch.Tensor]
    """Frozen beginning of the image tower; `encode_image` takes its output. See towers.cut_trunk."""
    scale: torch.Tensor
    """Inverse temperature of InfoNCE, on the device; frozen."""
    device: torch.device
    """Where the towers are, and all that is computed from their embeddings. Messages and data are on the CPU."""
    half: bool
    """Whether the towers run in bfloat16."""
    micro: int
    """Rows that go through a tower at once where gradients are wanted; 0: all."""
    cuts: bool
    """Whether captions go in without the padding that all rows of a batch end with."""

    @property
    def clip(self) -> CLIP:
        """The open_clip model inside, adapters included."""
        return self.model.base_model.model

    @property
    def size(self) -> int:
        """p, the length of the adapter vector."""
        return self.blocks[-1].stop

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit-length embeddings on the device, float32 (n, d), of images after the trunk, with gradients."""
        return self._embed(self.clip.encode_image, images)

    def embed_texts(self, tokens: torch.Tensor) -> torch.Tensor:
        """Unit-length embeddings on the device, float32 (n, d), of token rows (n, length), with gradients."""
        cut = self.cuts and not tokens.is_cuda
        return self._embed(self.clip.encode_text, towers.without_padding(tokens) if cut else tokens)

    def _embed(self, encode: Callable[..., torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Gradients of a batch in parts: each part is computed again when its turn comes in the backward pass, so that only one
        is in memory. The loss is of the whole batch all the same (GradCache, arXiv 2101.06983)."""

        def once(part: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                return encode(part.float() if part.is_floating_point() else part, normalize=True).float()

        inputs = self.to_device(inputs)
        if not (self.micro and len(inputs) > self.micro and torch.is_grad_enabled()):
            return once(inputs)
        return torch.cat([checkpoint(once, part, use_reentrant=False) for part in inputs.split(self.micro)])

    def to_device(self, x: torch.Tensor) -> torch.Tensor:
        """x where the towers are; the copy goes on while the host prepares what comes next."""
        if self.device.type == "cuda" and x.device.type == "cpu":
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True)

    def get(self) -> Vector:
        """The adapter vector, float32 (p,)."""
        return self.theta.cpu().numpy().copy()

    def set(self, vector: Vector) -> None:
        """Put a vector of float32 (p,) into the model. Raises ValueError on another shape."""
        if vector.shape != (self.size,):
            raise ValueError(f"adapter vector of shape {vector.shape}, this model has ({self.size},)")
        self.theta.copy_(torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32)))

    def save(self, vector: Vector, folder: Path, base: str) -> None:
        """Write a PEFT folder (adapter_config.json, adapter_model.safetensors) that PeftModel.from_pretrained loads.

        base: what the base model is called.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"adapter vector of shape {vector.shape}, this model has ({self.size},)")
        config = copy.copy(self.model.peft_config["default"])
        config.inference_mode, config.base_model_name_or_path = True, base
        config.save_pretrained(str(folder))
        parts = {_key(b): vector[b.start : b.stop].reshape(b.shape).astype(np.float32) for b in self.blocks}
        save_file(parts, folder / "adapter_model.safetensors", {"format": "pt", "ease_flwr_adapters": str(ADAPTERS)})


def read(folder: Path, blocks: tuple[Block, ...]) -> Vector:
    """The adapter vector of a PEFT folder, as `save` writes them. Raises ConfigError if it is not there or of another shape.

    A folder without a format number is of format 1, which had the adapter of every out_proj twice: its B is doubled.
    """
    file = folder / "adapter_model.safetensors"
    try:
        with safe_open(file, "numpy") as opened:
            written = int((opened.metadata() or {}).get("ease_flwr_adapters", 1))
            parts = [opened.get_tensor(_key(b)) for b in blocks]
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{file}: not the adapters of this experiment: {error}") from None
    if wrong := [b.name for b, p in zip(blocks, parts, strict=True) if tuple(p.shape) != b.shape]:
        raise ConfigError(f"{file}: {wrong[0]} has another shape than in this experiment")
    if written not in (1, ADAPTERS):
        raise ConfigError(f"{file}: adapters of format {written}, this version reads 1 and {ADAPTERS}: use a newer one")
    twice = [2.0 if written == 1 and "out_proj.lora_B" in b.name else 1.0 for b in blocks]
    return np.concatenate([k * p.reshape(-1) for k, p in zip(twice, parts, strict=True)]).astype(np.float32)


def _key(block: Block) -> str:
    """Name of a tensor in a PEFT folder."""
    return "base_model.model." + block.name.replace(".default", "")


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
    kinds: tuple[Tower, ...] = ("visual", "text")
    there = {tower: targets.adaptable(base.model, tower) for tower in kinds}
    exactly = "|".join(re.escape(n) for n in targets.modules(base.model, lora))  # a list would match by suffix
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, bias="none", target_modules=exactly)
    config._register_custom_module(LAYERS)
    model = peft.get_peft_model(base.model, config)
    named = {n.removeprefix("base_model.model."): p for n, p in model.named_parameters() if "lora_" in n}
    order = sorted(named, key=lambda n: not n.startswith("visual."))  # stable: the model's own order inside a tower
    blocks, start = [], 0
    for name in order:
        tower: Tower = "visual" if name.startswith("visual.") else "text"
        blocks.append(Block(name, tower, tuple(named[name].shape), start))
        start = blocks[-1].stop
    initial = _drawn(blocks, seed)
    theta = torch.from_numpy(initial.copy()).to(device)
    for block, name in zip(blocks, order, strict=True):
        named[name].data = theta[block.start : block.stop].view(block.shape)
        named[name].requires_grad_(True)
    model.eval()
    with _can_be_run():
        cuts, trunk = towers.shorten(base), towers.cut_trunk(base)
    parameters, scale = tuple(named[n] for n in order), base.model.logit_scale.exp()
    half, micro = how.precision == "bfloat16", how.micro_batch
    found = AdaptedModel(base, model, tuple(blocks), parameters, initial, theta, trunk, scale, device, half, micro, cuts)
    _try_out(found, there)
    return found


@contextmanager
def _can_be_run() -> Iterator[None]:
    """Raises ConfigError where towers fail in it on a picture or a caption."""
    try:
        yield
    except Exception as error:  # whatever a library says of input that a model of its own cannot take
        why = f"{type(error).__name__}: {line(error)}"
        raise ConfigError(
            f"model: its towers cannot be run on a picture and a caption ({why}): mend model or lora.targets"
        ) from None


def _try_out(adapted: AdaptedModel, there: dict[Tower, list[str]]) -> None:
    """One step backwards, away from B = 0. Raises ConfigError where the model cannot be run, or an adapter gets no gradient: it
    would travel, and change nothing."""
    draw = torch.Generator().manual_seed(0)
    away = torch.randn(adapted.size, generator=draw) / 32
    pictures, tokens = towers.made_up(adapted.base)
    adapted.theta.add_(away.to(adapted.device))
    with _can_be_run():
        exact = replace(adapted, half=False, micro=0, cuts=False)
        with torch.no_grad():
            images = adapted.trunk(pictures.to(adapted.device))
        f, g = exact.embed_images(images), exact.embed_texts(tokens)
        total = [(x * torch.randn(x.shape, generator=draw).to(adapted.device)).sum() for x in (f, g)]
        gradients = torch.autograd.grad(torch.stack(total).sum(), adapted.parameters, allow_unused=True)
    adapted.set(adapted.initial)
    if f.shape != g.shape or f.ndim != 2:
        raise ConfigError(f"model: its embeddings of two pictures are of shape {tuple(f.shape)}, of captions {tuple(g.shape)}")
    if not bool(torch.isfinite(f).all() & torch.isfinite(g).all()):
        raise ConfigError("model: its embeddings are not finite numbers: see whether these are its weights")
    dead = [b.name for b, g in zip(adapted.blocks, gradients, strict=True) if g is None or not bool(g.any())]
    if dead:
        raise ConfigError(targets.without_effect(dead, there))


def _drawn(blocks: Sequence[Block], seed: int) -> Vector:
    """theta_0: A from N(0, 1 / fan-in), B zero."""
    rng = np.random.default_rng((seed, 0x10FA))
    parts = []
    for block in blocks:
        if "lora_B" in block.name:
            parts.append(np.zeros(block.size, np.float32))
        else:
            draw = rng.standard_normal(block.shape) / math.sqrt(math.prod(block.shape[1:]))
            parts.append(draw.astype(np.float32).reshape(-1))
    return np.concatenate(parts)


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
