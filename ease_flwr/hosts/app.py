"""The folder that `flwr run` is given: a Flower app, pyproject.toml on top and the prescribed folders beside ease_flwr/.

A method of the user's own is put into it, and nothing else of the user's: experiments travel with the run (config/own.py).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from ease_flwr import strategies
from ease_flwr.config import APP, PACKAGE, ConfigError, digest, file_sha256, halves
from ease_flwr.config.identity import HALVES
from ease_flwr.store.files import home, new_folder

APP_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")
"""Of an app, and of its folder."""
UNPACKED = ",\r\n"
"""What the name of a file may not have: Flower writes a line a file, with commas."""
ON_TOP = (*HALVES, "conf", "pyproject.toml", "README.md", "LICENSE")
"""What a wheel holds inside of the package, and an app beside it."""


KEPT = 30 * 24 * 3600.0
"""Seconds after which an app that no run was started with is removed."""


def check() -> None:
    """Raises ConfigError where the installation is not whole, or Flower cannot pack it."""
    if not (APP / "pyproject.toml").is_file():
        raise ConfigError(f"no pyproject.toml in {APP}: install the wheel, or the checkout with `pip install -e .`")
    if wrong := next((file for name, file in sorted(_files().items()) if any(c in name for c in UNPACKED)), None):
        raise ConfigError(f"{str(wrong)!r}: Flower lists the files of an app with commas and lines, rename this one")


def folder(methods: Collection[str] = ()) -> Path:
    """A checkout as it is. Of an installed wheel, and for methods of the user's own: an app laid out among the runs.

    methods: names of strategies. Raises ConfigError where the installation is not whole.
    """
    check()
    more = own_halves(methods)
    if APP != PACKAGE and not more:
        return APP
    files = _files() | more
    to = home() / "apps" / digest({name: file_sha256(file) for name, file in files.items()})[:16]
    if not to.is_dir():
        _laid_out(to, files)
    with suppress(PermissionError):  # another user's, who has the same folder for runs
        os.utime(to)
    for other in to.parent.iterdir():
        if time.time() - other.stat().st_mtime > KEPT:
            shutil.rmtree(other, ignore_errors=True)
    return to


def write(to: Path) -> None:
    """The app in a new folder of a name that Flower takes, for `flwr build` and `flwr app publish`. Raises ConfigError."""
    check()
    if not APP_NAME.fullmatch(to.name):
        raise ConfigError(
            f"{to}: Flower wants a letter, then letters, digits and hyphens in the name of this folder: choose another"
        )
    new_folder(to)
    for name, file in _files().items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, to / name)


@lru_cache(maxsize=1)
def packed() -> bytes:
    """The app bundle of this installation, as `flwr run` sends it where no method is the user's own: of the same files always
    the same bytes. Raises ConfigError."""
    from flwr.cli.build import build_fab_from_files

    check()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of what Flower uses
        return build_fab_from_files(dict(_files()))[0]


def own_halves(methods: Collection[str]) -> dict[str, Path]:
    """By their place in an app, the user's files of these methods, and what they share (it begins with an underscore)."""
    wanted = {"strategies": set(methods), "clients": {o for m in methods for o in strategies.load(m).objectives}}
    there = {half: halves.own_files(half) for half in HALVES}
    if not any(there[half].keys() & wanted[half] for half in HALVES):
        return {}
    return {
        f"{half}/{name}.py": file
        for half in HALVES
        for name, file in there[half].items()
        if name in wanted[half] or name[0] == "_"
    }


def _files() -> dict[str, Path]:
    """The files of the app by their names in it."""
    inside = ON_TOP if APP == PACKAGE else ()
    files = {f"{PACKAGE.name}/{name}": file for name, file in _below(PACKAGE).items() if name.split("/")[0] not in inside}
    return files | {name: file for name, file in _below(APP).items() if name.split("/")[0] in ON_TOP}


def _below(folder: Path) -> dict[str, Path]:
    """All files below a folder by their relative names, but for what Python leaves there."""
    tops = [folder / name for name in ON_TOP] if folder != PACKAGE else [PACKAGE]
    found = [p for top in tops for p in ([top] if top.is_file() else top.rglob("*"))]
    return {p.relative_to(folder).as_posix(): p for p in found if p.is_file() and "__pycache__" not in p.parts}


def _laid_out(to: Path, files: dict[str, Path]) -> None:
    """These files by their names in the folder `to`, all or none."""
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=to.parent, prefix=".draft-"))
    try:
        for name, file in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, draft / name)
        os.replace(draft, to)
    except OSError:
        if not to.is_dir():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
