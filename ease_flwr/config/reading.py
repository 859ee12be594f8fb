"""Experiments from YAML and `key=value`.

An experiment is read from conf/experiment/NAME.yaml (after the one it `extends`), then from conf/variant/ what NAME+VARIANT+...
adds to it; dotted keys (`forget.targets=client-4`) override single fields. YAML gives sections, lists and texts; what a text
means is said by the type of its field (typed.py). Neither torch nor flwr is imported here: a mistake is answered at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from ease_flwr.config import own, typed
from ease_flwr.config.experiment import Experiment
from ease_flwr.config.identity import APP
from ease_flwr.config.renamed import refuse_old
from ease_flwr.config.section import ConfigError, meant, validate


class _Loader(yaml.BaseLoader):
    """Sections, lists and texts. A key that stands twice in a section is a mistake: YAML would drop what the first says."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for twice in (k for i, k in enumerate(keys) if k in keys[:i]):
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is there twice in one section", node.start_mark)
        return super().construct_mapping(node, deep)


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
        raise ConfigError(f"no {group} {name!r}: there are {', '.join(choices(group))}{more}{meant(name, choices(group))}")
    if text is None and (clash := own.clashes.get((group, name))):
        raise ConfigError(clash)
    path = _files(group)[name] if text is None else f"{group}/{name}.yaml"
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8-sig") if text is None else text, _Loader) or {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is no UTF-8: save it as UTF-8") from None
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines")
    if values.get("name", name) != name:
        raise ConfigError(f"{path}: name={values['name']!r}: it is called by its file, leave this out")
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
    """values["a"]["b"] = value for the key "a.b"."""
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key}: {part} is a value, not a section")
    values[last] = value


def load(name: str, overrides: dict[str, Any] | None = None, told: Mapping[str, str] | None = None) -> Experiment:
    """The experiment NAME or NAME+VARIANT+... with these dotted keys changed; told: as of read_yaml. Raises ConfigError."""
    first, *variants = name.split("+")
    changes = read_yaml("experiment", first, told)
    base = changes.pop("extends", None)
    values = {} if base is None else read_yaml("experiment", str(base), told)
    if "extends" in values:
        raise ConfigError(
            f"experiment {first}: {base} extends another one itself ({values['extends']}): extend that, or copy it"
        )
    _merge(values, {"name": name, **changes})
    for variant in variants:
        _merge(values, read_yaml("variant", variant, told))
    for key, value in (overrides or {}).items():
        if key == "name":
            raise ConfigError(f"name={value!r}: an experiment is called by its file")
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
        assign(values, key, typed.plain(value))
    return values


def strategy_values(name: str, experiment: Experiment) -> dict[str, Any]:
    """Settings of a strategy: what the experiment says about it, then what it says about the strategy of this run."""
    values: dict[str, Any] = {}
    for changes in (experiment.strategies.get(name, {}), experiment.strategy):
        _merge(values, deepcopy(changes))
    return values
