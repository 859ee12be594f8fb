"""Paths as somebody types them: from where they stand. Once asked they are absolute, whoever reads them, in whatever folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ease_flwr.config.experiment import Experiment
from ease_flwr.config.identity import PACKAGE
from ease_flwr.config.reading import load, parse_assignments
from ease_flwr.config.section import ConfigError, leaves
from ease_flwr.config.typed import shown
from ease_flwr.config.weights import LOCAL

FILES = {".safetensors", ".json", ".pt", ".pth", ".bin"}
"""Endings of a base model's files; what has none of them is the tag of pretrained weights."""


def asked(
    experiment: str, assignments: Iterable[str], seed: int | None = None, **more: Any
) -> tuple[Experiment, dict[str, Any]]:
    """An experiment with `key=value`s as somebody asks for it, and these settings with absolute paths, those of its own YAML
    among them. seed: None is the experiment's own.  more: further settings by their names. Raises ConfigError."""
    told = more | parse_assignments(assignments)
    if seed is not None and told.setdefault("seed", str(seed)) != str(seed):
        raise ConfigError(f"seed={told['seed']}: --seed {seed} is said as well: leave one out")
    loaded = load(experiment, told)
    if paths := _paths(loaded):
        told |= paths
        loaded = load(experiment, told)
    return loaded, told


def absolute(path: str, what: str) -> str:
    """An absolute path; a relative one is meant from the working folder. Raises ConfigError where none can have that name."""
    try:
        found = Path(path).expanduser() if path == "~" or path.startswith("~/") else Path(path)
        found = found.absolute()
        os.lstat(found)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(f"{what}={shown(path)}: no file or folder can have so long a name") from None
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{what}={shown(path)}: no file or folder can be called that ({error})") from None
    return str(found)


def _paths(experiment: Experiment) -> dict[str, str]:
    """By key, the fields whose paths are not absolute yet, as they are then."""
    found = {}
    for key, field, _ in leaves(Experiment):
        extra = field.json_schema_extra
        value = _value(experiment, key)
        if isinstance(extra, dict) and extra.get("path") and value:
            found[key] = absolute(value, key)
    model = experiment.model
    if model.weights and _is_file(model.weights):
        found["model.weights"] = absolute(model.weights, "model.weights")
    if model.name.startswith(LOCAL):
        found["model.name"] = LOCAL + absolute(model.name.removeprefix(LOCAL), "model.name")
    return {key: path for key, path in found.items() if path != _value(experiment, key)}


def _value(model: BaseModel, key: str) -> str:
    value: Any = model
    for part in key.split("."):
        value = getattr(value, part)
    return str(value)


def _is_file(weights: str) -> bool:
    """Whether these are a file, or meant to be one: not a tag, and not a file of ours."""
    try:
        ours = weights.startswith(f"{PACKAGE.name}/") and (PACKAGE.parent / weights).is_file()
        return not ours and (Path(weights).suffix in FILES or "/" in weights or Path(weights).is_file())
    except OSError:  # of a name that no file can have, nor any tag
        return True
