"""What a user brings along beside the project's own: experiments, variants, and halves of methods.

Only the command line looks for them. It ships them with the app, so that servers and hosts need not.
"""

from __future__ import annotations

from pathlib import Path

from ease_flwr.config.identity import APP
from ease_flwr.config.section import ConfigError

GROUPS = ("experiment", "variant")
settings: dict[str, dict[str, Path]] = {group: {} for group in GROUPS}
"""Files of experiments and variants: group -> name -> file."""


def add_folder(folder: Path) -> None:
    """All experiments and variants of a folder like conf/. Raises ConfigError where there are none, or a name is taken."""
    found = [(group, file) for group in GROUPS for file in sorted((folder / group).glob("*.yaml"))]
    if not found:
        raise ConfigError(f"{folder}: no experiment/NAME.yaml and no variant/NAME.yaml in it")
    for group, file in found:
        _add(group, file)


def add_experiment(file: Path) -> str:
    """One experiment by its file; returns its name. Raises ConfigError where there is none, or its name is taken."""
    if not file.is_file():
        raise ConfigError(f"no experiment file {file}")
    _add("experiment", file)
    return file.stem


def by_file(experiment: str) -> str:
    """What names an experiment in another process: one of the user's own by its file."""
    first, *variants = experiment.split("+")
    return "+".join((str(settings["experiment"].get(first, first)), *variants))


def _add(group: str, file: Path) -> None:
    file = file.absolute()
    for other in (APP / "conf" / group / f"{file.stem}.yaml", settings[group].get(file.stem)):
        if other is not None and other.is_file() and other.read_bytes() != file.read_bytes():
            raise ConfigError(f"{file}: there is another {group} {file.stem!r}, {other}: rename yours")
    settings[group].setdefault(file.stem, file)
