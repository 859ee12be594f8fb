"""Base models as people bring them, damaged or odd: read as they are, or refused in one line.

Targets of benchmarks.fuzz: each writes a model folder of its own, tries it, and says what it tried.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ease_flwr.config import ConfigError, LoraConfig, ModelConfig
from ease_flwr.model import adapters, published, targets
from tests.models import PREPROCESS, SUPPORTED, TEXT, of, write_folder

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
SMALL = of(text={**TEXT, "vocab_size": 49408})
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    3,
    1e9,
    0.5,
    "",
    "x",
    "../x",
    [],
    [0.5],
    [0.5] * 3,
    ["a"] * 3,
    {},
    {"a": 1},
    "nan",
    7**30,
]
OTHERS = [
    b"",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    b"<!doctype html><title>404</title>",
    b"PK\x03\x04" + bytes(60),
    b"\x80\x02}q\x00.",
    b"\x93NUMPY\x01\x00",
    b"{}",
    bytes(8),
    b"\x08" + bytes(7) + b'{"a":1} ',
    b"\xff" * 64,
]


def tried(model: ModelConfig, lora: LoraConfig | None = None) -> str:
    """Open a model from shapes alone, then with its weights, and attach adapters: "read", or that it was refused, and when.

    Raises AssertionError where a refusal is more than a line.
    """
    refused = _refusal(lambda: targets.modules(published.opened(model, empty=True).model, lora or LoraConfig()))
    if refused:
        return "refused"
    later = _refusal(lambda: adapters.load.__wrapped__(model, lora or LoraConfig(), 0))
    return f"refused with its weights: {later}" if later else "read"


def _refusal(act: Callable[[], Any]) -> str:
    """What the one line says; "" where nothing is refused."""
    try:
        act()
    except ConfigError as error:
        said = str(error)
    else:
        return ""
    if len(said.splitlines()) != 1:
        raise AssertionError(f"a refusal of more than a line: {said}")
    return said


def named(rng: random.Random, folder: Path) -> ModelConfig:
    """A published folder, by one of the ways to name it."""
    return ModelConfig(
        **rng.choice([{"weights": str(folder)}, {"weights": str(folder / WEIGHTS)}, {"name": f"local-dir:{folder}"}])
    )


def damaged_weights(rng: random.Random, folder: Path) -> str:
    """The file of weights is another, cut, or changed by a few bytes."""
    write_folder(folder, SMALL, PREPROCESS)
    file = folder / WEIGHTS
    whole, what = file.read_bytes(), rng.choice(["other", "cut", "bytes", "head", "longer"])
    if what == "other":
        file.write_bytes(rng.choice(OTHERS))
    elif what == "cut":
        file.write_bytes(whole[: rng.randrange(len(whole))])
    elif what == "longer":
        file.write_bytes(whole + rng.randbytes(rng.randint(1, 64)))
    else:
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(min(len(changed), 2000) if what == "head" else len(changed))] = rng.randrange(256)
        file.write_bytes(changed)
    return f"weights: {what}: {tried(named(rng, folder))}"


def other_tensors(rng: random.Random, folder: Path) -> str:
    """The weights are whole, and not those of the model: names, shapes and kinds of tensors."""
    write_folder(folder, SMALL, PREPROCESS)
    state = load_file(folder / WEIGHTS)
    name = rng.choice(sorted(state))
    what = rng.choice(["gone", "more", "renamed", "shape", "int8", "nan", "half", "bfloat16", "double", "transformers"])
    if what == "gone":
        state.pop(name)
    elif what == "more":
        state[f"{name}.more"] = torch.zeros(3)
    elif what == "renamed":
        state[name.swapcase()] = state.pop(name)
    elif what == "shape":
        state[name] = torch.zeros(*state[name].shape, 2) if rng.random() < 0.5 else torch.zeros(5)
    elif what == "int8":
        state[name] = state[name].to(torch.int8)
    elif what == "nan":
        state[name] = torch.full_like(state[name], float("nan"))
    elif what == "transformers":
        state = {f"text_model.{n}": t for n, t in state.items()}
    else:
        state = {
            n: t.to(getattr(torch, {"half": "float16"}.get(what, {"double": "float64"}.get(what, what))))
            for n, t in state.items()
        }
    save_file(state, folder / WEIGHTS)
    found = tried(named(rng, folder))
    assert found.startswith("read") == (what in ("half", "bfloat16", "double")), f"{what} of {name}: {found}"
    return f"tensors: {what} {name}: {found}"


def odd_config(rng: random.Random, folder: Path) -> str:
    """A setting of the configuration is missing, or something else."""
    write_folder(folder, SMALL, PREPROCESS)
    file = folder / CONFIG
    said = json.loads(file.read_text())
    part: Any = said
    for _ in range(rng.randint(0, 2)):
        inner = [v for v in part.values() if isinstance(v, dict) and v]
        part = rng.choice(inner) if inner else part
    key, what = rng.choice([*part, "custom_text", "hf_model_name", "timm_model_name", "hf_tokenizer_name"]), rng.choice(VALUES)
    if rng.random() < 0.2:
        part.pop(key, None)
        what = "nothing"
    else:
        part[key] = what
    text = json.dumps(said)
    if rng.random() < 0.1:
        text, what = text[: rng.randrange(len(text))], "cut"
    file.write_text(text)
    return f"config: {key}={what}: {tried(named(rng, folder))}"


def odd_folder(rng: random.Random, folder: Path) -> str:
    """Files of the folder are missing, under other names, folders, or links to nothing."""
    write_folder(folder, SMALL, PREPROCESS)
    file, what = folder / rng.choice([CONFIG, WEIGHTS]), rng.choice(["gone", "bin", "folder", "link", "unnamed"])
    content = file.read_bytes()
    file.unlink()
    if what == "bin":
        (folder / "open_clip_pytorch_model.bin").write_bytes(content)
    elif what == "folder":
        file.mkdir()
    elif what == "link":
        file.symlink_to(folder / "nowhere")
    elif what == "unnamed":
        (folder / "model.safetensors").write_bytes(content)
    return f"folder: {what} {file.name}: {tried(named(rng, folder))}"


def odd_targets(rng: random.Random, folder: Path) -> str:
    """Any names of modules, of any class of model: what is adapted has an effect, or is named."""
    row = rng.choice(sorted(SUPPORTED))
    architecture, names = SUPPORTED[row]
    write_folder(folder, architecture)
    with torch.device("meta"):
        there = [n for n, _ in published.built(architecture, row).named_modules() if n]
    some = rng.sample(there, 2)
    chosen = (
        *rng.sample(names, rng.randint(0, len(names))),
        *rng.sample([s for n in some for s in (n, n.rpartition(".")[2])], 2),
    )
    lora = LoraConfig(rank=1, targets=chosen, visual_from=rng.choice([0, 0, 1]), text_from=rng.choice([0, 0, 1]))
    return f"targets: {row} {','.join(chosen)}: {tried(ModelConfig(weights=str(folder)), lora)}"


TARGETS: dict[str, Callable[[random.Random, Path], str]] = {
    "damaged_weights": damaged_weights,
    "other_tensors": other_tensors,
    "odd_config": odd_config,
    "odd_folder": odd_folder,
    "odd_targets": odd_targets,
}
