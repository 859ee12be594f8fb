"""The halves of a method, found by name: the name you type is the file that is opened, and there is no registry."""

from __future__ import annotations

from importlib import import_module, resources
from typing import TypeVar

from ease_flwr.core.config import ConfigError

T = TypeVar("T")


def names(package: str) -> list[str]:
    """Modules of `package` that hold a method: all but base.py."""
    files = (entry.name for entry in resources.files(package).iterdir())
    return sorted({f.removesuffix(".py") for f in files if f.endswith(".py")} - {"__init__", "base"})


def find(package: str, name: str, base: type[T]) -> type[T]:
    """The one class of `package`/`name`.py that extends `base`. Raises ConfigError for an unknown name."""
    if name not in names(package):
        raise ConfigError(f"no {name!r} in {package}/: there are {', '.join(names(package))}")
    module = import_module(f"{package}.{name}")
    found = [
        c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base) and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ConfigError(f"{package}/{name}.py must define one class that extends {base.__name__}, it has {len(found)}")
    return found[0]
