"""Whether the files of a base model are what they should be, from their heads: before anything is started, without torch."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ease_flwr.config.identity import named_file
from ease_flwr.config.model import ModelConfig
from ease_flwr.config.section import ConfigError


def architecture_beside(model: ModelConfig) -> Path | None:
    """The open_clip configuration of a .safetensors file, where it names the model; None where `model.name` does.

    Raises ConfigError for a file that is missing, cut or of another kind.
    """
    if not model.weights.endswith(".safetensors"):
        return None
    path = named_file(model.weights)
    if not path.is_file():
        raise ConfigError(f"model.weights: no file {path}: give the absolute path of a .safetensors or .json file")
    try:
        with safe_open(path, framework="numpy") as file:
            if not file.keys():
                raise ConfigError(f"model.weights: {path} has no tensors: give the weights of a whole CLIP model")
    except (OSError, SafetensorError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"model.weights: {path} is not a .safetensors file, or was cut ({why}): fetch it again") from None
    if model.name:
        return None
    beside = path.with_suffix(".json")
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"model.weights: {path.name} needs its open_clip config {beside} beside it, or model.name") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.weights: {beside} is not an open_clip config ({error})") from None
    there = said if isinstance(said, dict) else {}
    if missing := [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in there]:
        raise ConfigError(f"model.weights: {beside} is not an open_clip config: it has no {missing[0]}")
    return beside
