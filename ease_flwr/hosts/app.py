"""The folder that `flwr run` is given: a Flower app, pyproject.toml on top and the prescribed folders beside ease_flwr/."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ease_flwr.config import APP, PACKAGE, ConfigError, code_hash
from ease_flwr.store.files import home

ON_TOP = ("strategies", "clients", "conf", "pyproject.toml", "README.md", "LICENSE")
"""What a wheel holds inside of the package, and an app beside it."""


def folder() -> Path:
    """A checkout as it is; of an installed wheel its files, laid out as an app among the runs. Raises ConfigError."""
    if not (APP / "pyproject.toml").is_file():
        raise ConfigError(f"no pyproject.toml in {APP}: install the wheel, or the checkout with `pip install -e .`")
    return APP if APP != PACKAGE else laid_out(home() / "apps" / code_hash()[:16])


def laid_out(to: Path) -> Path:
    """The files of the installed package as an app in `to`, once."""
    if to.is_dir():
        return to
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=to.parent, prefix=".draft-"))
    try:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE, draft / PACKAGE.name, ignore=unwanted)
        for name in ON_TOP:
            shutil.move(draft / PACKAGE.name / name, draft / name)
        os.replace(draft, to)
    except OSError:
        if not to.is_dir():  # another process may have been faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return to
