"""The frozen image-text model: any open_clip model by name, by configuration and weights file, or our small built-in one."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ease_flwr.config import ConfigError, ModelConfig, architecture_beside, named_file

FORMAT = "ease-base-model/1"


class Tokenizer(Protocol):
    """Sentences to token ids, int64 (n, length)."""

    def __call__(self, texts: Sequence[str]) -> torch.Tensor: ...


@dataclass(frozen=True)
class WordTokenizer:
    """One token a word. The last two entries of the vocabulary are the start and the end; the first is the padding."""

    vocabulary: tuple[str, ...]
    context_length: int

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids, int64 (n, context_length). Raises ValueError at a word that is not in the vocabulary."""
        index = {w: i for i, w in enumerate(self.vocabulary)}
        out = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            words = text.split()
            unknown = [w for w in words if w not in index]
            if unknown or len(words) + 2 > self.context_length:
                raise ValueError(f"tokenizer: {text!r} has unknown words {unknown} or more than {self.context_length - 2}")
            ids = [len(index) - 2, *(index[w] for w in words), len(index) - 1]
            row[: len(ids)] = torch.tensor(ids)
        return out


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen dual encoder in eval mode, with what it needs before it."""

    model: CLIP
    tokenize: Tokenizer
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    architecture: dict[str, Any]
    """What open_clip builds the model from."""

    def normalise(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 (n, h, w, 3) -> float32 (n, 3, image_size, image_size), resized if it must be, normalised."""
        if images.shape[1:3] != (self.image_size, self.image_size):
            side = (self.image_size, self.image_size)
            images = np.stack([np.asarray(Image.fromarray(i).resize(side, Image.Resampling.BICUBIC)) for i in images])
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(255)
        return (x - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


def shorten_context(backbone: Backbone, name: str, length: int) -> Backbone:
    """The same open_clip model for captions of at most `length` tokens. Exact for those: the text tower is causal and padding
    comes last, or it is a Hugging Face one, which masks its padding."""
    model = backbone.model
    if length >= backbone.architecture["text_cfg"].get("context_length", model.context_length):
        return backbone
    tower = getattr(model, "text", model)
    if not isinstance(tower, HFTextEncoder):
        tower.positional_embedding = nn.Parameter(tower.positional_embedding[:length].clone(), requires_grad=False)
        tower.attn_mask = tower.attn_mask[:length, :length]
    tower.context_length = model.context_length = length
    shorter = copy.deepcopy(backbone.architecture)
    shorter["text_cfg"]["context_length"] = length
    tokenize = partial(open_clip.get_tokenizer(name), context_length=length)
    return replace(backbone, tokenize=tokenize, architecture=shorter)


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


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_base(path: Path, model: CLIP, config: dict[str, Any], vocabulary: Sequence[str], image: dict[str, Any]) -> None:
    """Write a small model as one JSON file, int8 per row, with its sha256 inside.

    config: keyword arguments of open_clip's CLIP.  image: {"size": pixels, "mean": 3 floats, "std": 3 floats}.
    """
    content = {
        "format": FORMAT,
        "config": config,
        "vocabulary": list(vocabulary),
        "image": image,
        "tensors": quantise(model.state_dict()),
    }
    text = json.dumps({**content, "sha256": _hash(content)}, sort_keys=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_base(path: Path) -> Backbone:
    """Read a file of `write_base`. Raises ConfigError if it is not one, or if its content does not fit its hash."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        expected = content.pop("sha256")
        if content["format"] != FORMAT:
            raise ConfigError(f"model.weights: {path} is {content['format']!r}, expected {FORMAT!r}")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"model.weights: {path} is not a base model ({error}): write one with `ease make-base`") from None
    if _hash(content) != expected:
        raise ConfigError(f"model.weights: the content of {path} does not fit its sha256: it was changed or cut, write it anew")
    model = CLIP(**copy.deepcopy(content["config"]))
    model.load_state_dict(dequantise(content["tensors"]))
    image = content["image"]
    tokenizer = WordTokenizer(tuple(content["vocabulary"]), content["config"]["text_cfg"]["context_length"])
    return Backbone(model, tokenizer, image["size"], tuple(image["mean"]), tuple(image["std"]), content["config"])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def no_false_alarm() -> Iterator[None]:
    """open_clip warns of random weights where it has no pretrained tag. Here they come from a file, afterwards."""

    def other(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    logging.getLogger().addFilter(other)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(other)


def _open_clip(config: ModelConfig) -> Backbone:
    name, weights = config.name, config.weights
    from_file = weights.endswith(".safetensors")
    if from_file:
        path = named_file(weights)
        if beside := architecture_beside(config):
            open_clip.add_model_config(beside)
            name = beside.stem
    if name not in open_clip.list_models():
        raise ConfigError(f"model.name: open_clip knows no model {name!r}; see open_clip.list_models()")
    if weights and not from_file and weights not in open_clip.list_pretrained_tags_by_model(name):
        raise ConfigError(
            f"model.weights: {weights!r} is neither a file (.json, .safetensors) nor a pretrained tag of {name}: "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(name))}"
        )
    tag = "" if from_file else weights
    published = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    architecture = open_clip.get_model_config(name) | ({"quick_gelu": True} if published.get("quick_gelu") else {})
    with torch.random.fork_rng(devices=[]), no_false_alarm() if from_file else nullcontext():
        torch.manual_seed(0)
        try:
            quick, tower = bool(published.get("quick_gelu")), architecture["text_cfg"].get("hf_model_name")
            model = open_clip.create_model(name, pretrained=tag or None, force_quick_gelu=quick, pretrained_text=not from_file)
        except (OSError, RuntimeError) as error:
            if tower:
                raise ConfigError(
                    f"model.weights: the text tower of {name} is that of {tower}, which cannot be read ({_line(error)}): "
                    "see that the folder is there, and pip install 'ease-flwr[towers]'"
                ) from None
            if not tag:
                raise
            source = (
                f"open_clip_model.safetensors of {published['hf_hub']}" if published.get("hf_hub") else published.get("url")
            )
            gelu = f" with --set model.name={name}-quickgelu" if published.get("quick_gelu") else ""
            raise ConfigError(
                f"model.weights: {tag!r} of {name} is not on this machine and cannot be downloaded now ({_line(error)}): fetch "
                f"{source} and give it as --set model.weights=/DIR/FILE.safetensors{gelu}"
            ) from None
    if from_file:
        state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ConfigError(f"model.weights: {path} does not fit {name}: {_line(error)}") from None
    size = model.visual.image_size
    side = size[0] if isinstance(size, (tuple, list)) else size
    backbone = Backbone(model, open_clip.get_tokenizer(name), int(side), config.mean, config.std, architecture)
    return shorten_context(backbone, name, config.context) if config.context else backbone


@lru_cache(maxsize=1)
def load(config: ModelConfig) -> Backbone:
    """The frozen backbone, kept per process. Raises ConfigError when name or weights cannot be used.

    A process has one copy, shared by all clients that run in it: whoever attaches adapters must set all of them.
    """
    backbone = read_base(named_file(config.weights)) if config.weights.endswith(".json") else _open_clip(config)
    backbone.model.eval().requires_grad_(False)
    return backbone
