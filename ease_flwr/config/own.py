"""What a user brings along beside the project's own: experiments and variants. (Halves of methods: halves.py.)

Only the command line and the Python API look for them. A run is told the text of those that it uses, and keeps it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from pathlib import Path

from ease_flwr.config.identity import APP
from ease_flwr.config.section import ConfigError

GROUPS = ("experiment", "variant")
settings: dict[str, dict[str, Path]] = {group: {} for group in GROUPS}
"""Files of experiments and variants: group -> name -> file."""
clashes: dict[tuple[str, str], str] = {}
"""Group and name of what is there twice -> what to say to who asks for it."""


def take_along(conf: Path | None = None) -> None:
    """What lies in the working folder: conf/, strategies/ and clients/; and the folder `conf`, or $EASE_FLWR_CONF.

    Raises ConfigError where that folder has nothing.
    """
    try:
        here = str(Path.cwd())
    except OSError as error:
        raise ConfigError(f"the working folder cannot be read ({error.strerror}): go to another") from None
    if here not in sys.path:
        sys.path.append(here)
    if any((Path("conf") / group).is_dir() for group in GROUPS):
        add_folder(Path("conf"))
    if conf is None and os.environ.get("EASE_FLWR_CONF"):
        conf = Path(os.environ["EASE_FLWR_CONF"])
    if conf is not None:
        add_folder(conf)
        os.environ["EASE_FLWR_CONF"] = str(conf.absolute())  # for the runs that a sweep starts


def add_folder(folder: Path) -> None:
    """All experiments and variants of a folder like conf/. Raises ConfigError where there are none."""
    try:
        found = [(group, file) for group in GROUPS for file in _yamls(folder / group)]
    except (OSError, ValueError):
        found = []
    if not found:
        raise ConfigError(f"{folder}: no experiment/NAME.yaml and no variant/NAME.yaml in it")
    for group, file in found:
        _add(group, file)


def named(experiment: str) -> str:
    """The name of an experiment, which may be given by its file: DIR/NAME.yaml+VARIANT is NAME+VARIANT. Raises ConfigError."""
    found = re.fullmatch(r"(.*\.ya?ml)((?:\+.*)?)", experiment)
    if found is None:
        return experiment
    file = Path(found[1])
    try:
        file.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"no experiment file {file}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"no experiment file {file}: {getattr(error, 'strerror', None) or error}") from None
    _add("experiment", file)
    for neighbour in _yamls(file.parent):  # it may extend one of these
        settings["experiment"].setdefault(neighbour.stem, neighbour.absolute())
    return file.stem + found[2]


def by_file(experiment: str) -> str:
    """What names an experiment in another process: one of the user's own by its file."""
    first, *variants = experiment.split("+")
    return "+".join((str(settings["experiment"].get(first, first)), *variants))


def spelled(names: list[tuple[str, str]]) -> str:
    """The texts of these files (group, name) in letters and digits, those of the project left out; "" of none."""
    texts = {
        f"{group}/{name}": settings[group][name].read_text(encoding="utf-8") for group, name in names if name in settings[group]
    }
    return base64.urlsafe_b64encode(json.dumps(texts).encode()).decode().rstrip("=") if texts else ""


def read(spelled: str) -> dict[str, str]:
    """The texts by "group/name". Raises ConfigError."""
    try:
        found = json.loads(base64.urlsafe_b64decode(spelled + "=" * (-len(spelled) % 4))) if spelled else {}
        return {str(name): str(text) for name, text in found.items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"own: not what `ease run` writes ({error}): submit the run again") from None


def _yamls(folder: Path) -> list[Path]:
    """Of a folder, in order; not what editors and systems hide there (.#NAME.yaml, ._NAME.yaml)."""
    return sorted(file for file in folder.glob("*.yaml") if file.name[0] != ".")


def _add(group: str, file: Path) -> None:
    """Take a file along. One that cannot be read is told to who asks for it."""
    file, name = file.absolute(), file.stem
    ours = APP / "conf" / group / f"{name}.yaml"
    known = ours if ours.is_file() else settings[group].setdefault(name, file)
    try:
        if known.read_bytes() != file.read_bytes():
            clashes[group, name] = f"{file}: there is another {group} {name!r}, {known}: rename yours"
    except OSError as error:
        clashes[group, name] = f"{file}: {error.strerror}"
