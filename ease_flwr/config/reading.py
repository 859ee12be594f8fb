"""Experiments from YAML and `key=value`, and what a run config of Flower says.

An experiment is read from conf/experiment/NAME.yaml (after the one it `extends`), then from conf/variant/ what NAME+VARIANT+...
adds to it; dotted keys (`forget.targets=client-4`) override single fields. Neither torch nor flwr is imported here, so that a
mistake is answered at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import yaml

from ease_flwr.config import own
from ease_flwr.config.experiment import Experiment
from ease_flwr.config.identity import APP
from ease_flwr.config.renamed import refuse_old
from ease_flwr.config.section import ConfigError, Section, validate


def choices(group: str) -> list[str]:
    """Names in a configuration group: "experiment" or "variant"."""
    return sorted(_files(group))


def read_yaml(group: str, name: str, told: Mapping[str, str] | None = None) -> dict[str, Any]:
    """conf/GROUP/NAME.yaml as a dictionary. told: texts of a user's own files by "GROUP/NAME", which a run was given.

    Raises ConfigError if there is none or it is not a mapping.
    """
    text = (told or {}).get(f"{group}/{name}")
    if text is None and name not in choices(group):
        more = f"; one of your own lies in ./conf/{group}/, or in {group}/ of ease --conf DIR"
        raise ConfigError(f"no {group} {name!r}: there are {', '.join(choices(group))}{more}")
    if text is None and (clash := own.clashes.get((group, name))):
        raise ConfigError(clash)
    path = _files(group)[name] if text is None else f"{group}/{name}.yaml"
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8") if text is None else text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines")
    return values


def parts(experiment: str) -> list[tuple[str, str]]:
    """(group, name) of all files that an experiment is read from. Raises ConfigError."""
    first, *variants = experiment.split("+")
    base = read_yaml("experiment", first).get("extends")
    return [("experiment", first), *([("experiment", str(base))] if base else []), *(("variant", v) for v in variants)]


def _files(group: str) -> dict[str, Path]:
    """By name, those of the project and the user's own."""
    return own.settings[group] | {p.stem: p for p in (APP / "conf" / group).glob("*.yaml")}


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """values["a"]["b"] = value for the key "a.b"; a string is read as YAML, so 3 is a number; "x,y" fills a tuple field."""
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key}: {part} is a value, not a section")
    values[last] = yaml.safe_load(value) if isinstance(value, str) and value != "" else value


def load(name: str, overrides: dict[str, Any] | None = None, told: Mapping[str, str] | None = None) -> Experiment:
    """The experiment NAME or NAME+VARIANT+... with these dotted keys changed; told: as of read_yaml. Raises ConfigError."""
    first, *variants = name.split("+")
    changes = read_yaml("experiment", first, told)
    values = read_yaml("experiment", changes.pop("extends"), told) if "extends" in changes else {}
    _merge(values, {"name": name, **changes})
    for variant in variants:
        _merge(values, read_yaml("variant", variant, told))
    for key, value in (overrides or {}).items():
        assign(values, key, value)
    refuse_old(values, f"experiment {name}")
    return validate(Experiment, values, f"experiment {name}")


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Put what changes into values, section by section."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


class Submission(Section):
    """What the run config of `flwr run` carries beside the experiment itself."""

    strategy: str = "ease"
    """File in strategies/."""
    run_dir: str = ""
    """Absolute folder of the run; "" is a new one under $EASE_FLWR_HOME or ~/ease_flwr_runs."""
    fresh: bool = False
    """Whether to compute learn phases again instead of taking them from the cache."""
    audit: Literal["", "quick", "full"] = ""
    """Instead of a new run, audit the finished one whose folder is the parent of run_dir."""
    resume: bool = False
    """Do what is left of the request queue of the run in run_dir, instead of a new run."""
    until: Literal["", "learn"] = ""
    """learn: a new run ends when it has learnt; what it forgets is asked later."""


def from_run_config(run_config: Mapping[str, Any]) -> tuple[Experiment, Submission]:
    """Read the run config of pyproject.toml, as changed by `flwr run -c`. Raises ConfigError.

    Keys: experiment, strategy, seed, run-dir, fresh, audit, resume, until; the dotted keys that pyproject.toml lists; `set`, a
    string with any others, "learn.rounds=3 continuation.rounds=2"; and `own`, see own.py. An empty string means: not set.
    """
    values = dict(run_config)
    submission = Submission(
        strategy=str(values.pop("strategy")),
        run_dir=str(values.pop("run-dir")),
        fresh=bool(values.pop("fresh")),
        audit=values.pop("audit", ""),
        resume=bool(values.pop("resume", False)),
        until=values.pop("until", ""),
    )
    name, extra, told = str(values.pop("experiment")), str(values.pop("set")), own.read(str(values.pop("own", "")))
    overrides = {k: v for k, v in values.items() if v != ""} | parse_assignments(extra.split())
    return load(name, overrides, told), submission


def parse_assignments(items: Iterable[str]) -> dict[str, Any]:
    """["a.b=1", ...] as {"a.b": "1"}. Raises ConfigError for an item without an equals sign."""
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{item!r}: expected key=value, for example forget.targets=client-4")
        pairs[key] = value
    return pairs


def settings(items: Iterable[str], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """["gsd.tau=.5", ...] as {"gsd": {"tau": .5}}: settings of a method, on top of others. Raises ConfigError."""
    values = deepcopy(dict(before or {}))
    for key, value in parse_assignments(items).items():
        assign(values, key, value)
    return values


def strategy_values(name: str, experiment: Experiment) -> dict[str, Any]:
    """Settings of a strategy: what the experiment says about it, then what it says about the strategy of this run."""
    values: dict[str, Any] = {}
    for changes in (experiment.strategies.get(name, {}), experiment.strategy):
        _merge(values, deepcopy(changes))
    return values
