"""The frozen image-text model: any of open_clip's (published.py), or our small built-in one."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP

from ease_flwr.config import BASE_MODEL, ConfigError, ModelConfig, base_content, base_hash, named_file
from ease_flwr.model import published
from ease_flwr.model.encoder import Backbone
from ease_flwr.model.hub import line
from ease_flwr.model.tokens import Tokenizer, WordTokenizer

__all__ = ["Backbone", "Tokenizer", "WordTokenizer", "dequantise", "load", "quantise", "read_base", "write_base"]


def quantise(state: dict[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Every tensor as int8 with one scale a row (the largest magnitude of a row becomes 127), in base64."""
    out = {}
    for name, tensor in state.items():
        rows = tensor.detach().float().reshape(len(tensor) if tensor.ndim > 1 else 1, -1)
        scale = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
        codes = (rows / scale).round().to(torch.int8)
        out[name] = {
            "shape": list(tensor.shape),
            "scale": base64.b64encode(scale.numpy().astype("<f4").tobytes()).decode(),
            "codes": base64.b64encode(codes.numpy().tobytes()).decode(),
        }
    return out


def dequantise(packed: dict[str, dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The inverse of `quantise`, up to half a step."""
    out = {}
    for name, item in packed.items():
        scale = np.frombuffer(base64.b64decode(item["scale"]), "<f4")
        codes = np.frombuffer(base64.b64decode(item["codes"]), np.int8).reshape(len(scale), -1)
        out[name] = torch.from_numpy((codes * scale[:, None]).astype(np.float32)).reshape(item["shape"])
    return out


def write_base(path: Path, model: CLIP, config: dict[str, Any], vocabulary: Sequence[str], image: dict[str, Any]) -> None:
    """Write a small model as one JSON file, int8 per row, with its sha256 inside.

    config: keyword arguments of open_clip's CLIP.  image: {"size": pixels, "mean": 3 floats, "std": 3 floats}.
    """
    content = {
        "format": BASE_MODEL,
        "config": config,
        "vocabulary": list(vocabulary),
        "image": image,
        "tensors": quantise(model.state_dict()),
    }
    text = json.dumps({**content, "sha256": base_hash(content)}, sort_keys=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_base(path: Path) -> Backbone:
    """Read a file of `write_base`. Raises ConfigError if it is not one, or if its content does not fit its hash."""
    content = base_content(path)
    try:
        model = CLIP(**copy.deepcopy(content["config"]))
        model.load_state_dict(dequantise(content["tensors"]))
        image = content["image"]
        tokenizer = WordTokenizer(tuple(content["vocabulary"]), content["config"]["text_cfg"]["context_length"])
        return Backbone(model, tokenizer, image["size"], tuple(image["mean"]), tuple(image["std"]), content["config"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        why = f"{type(error).__name__}: {line(error)}"
        raise ConfigError(f"model.weights: {path} is not a base model ({why}): write one with `ease make-base`") from None


@lru_cache(maxsize=1)
def load(config: ModelConfig) -> Backbone:
    """The frozen backbone, kept per process. Raises ConfigError when name or weights cannot be used.

    A process has one copy, shared by all clients that run in it: whoever attaches adapters must set all of them.
    """
    backbone = read_base(named_file(config.weights)) if config.weights.endswith(".json") else published.opened(config)
    backbone.model.eval().requires_grad_(False)
    return backbone
