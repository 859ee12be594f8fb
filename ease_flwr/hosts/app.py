"""The folder that `flwr run` is given: a Flower app, pyproject.toml on top and the prescribed folders beside ease_flwr/.

A user's own experiments and methods are put into it: what servers and hosts run is what was checked here.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ease_flwr.config import APP, PACKAGE, ConfigError, code_hash, digest, file_sha256, halves, own
from ease_flwr.config.identity import HALVES
from ease_flwr.store.files import home

ON_TOP = (*HALVES, "conf", "pyproject.toml", "README.md", "LICENSE")
"""What a wheel holds inside of the package, and an app beside it."""


def folder() -> Path:
    """A checkout as it is. Of an installed wheel, and where the user has files of their own: an app laid out among the runs.

    Raises ConfigError where the installation is not whole.
    """
    if not (APP / "pyproject.toml").is_file():
        raise ConfigError(f"no pyproject.toml in {APP}: install the wheel, or the checkout with `pip install -e .`")
    more = {f"{half}/{file.name}": file for half in HALVES for file in halves.own_files(half)}
    more |= {f"conf/{group}/{name}.yaml": file for group, found in own.settings.items() for name, file in found.items()}
    more = {name: file for name, file in more.items() if not (APP / name).is_file()}
    if APP != PACKAGE and not more:
        return APP
    return _laid_out(home() / "apps" / digest(code_hash(), {n: file_sha256(f) for n, f in more.items()})[:16], more)


def _laid_out(to: Path, more: dict[str, Path]) -> Path:
    """The project's files and more, by their place in an app, in the folder `to`; once."""
    if to.is_dir():
        return to
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=to.parent, prefix=".draft-"))
    try:
        inside = [*ON_TOP, "__pycache__"] if APP == PACKAGE else ["__pycache__"]
        shutil.copytree(PACKAGE, draft / PACKAGE.name, ignore=shutil.ignore_patterns(*inside))
        for name in ON_TOP:
            if (APP / name).is_dir():
                shutil.copytree(APP / name, draft / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(APP / name, draft / name)
        for name, file in more.items():
            shutil.copy2(file, draft / name)
        os.replace(draft, to)
    except OSError:
        if not to.is_dir():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return to
