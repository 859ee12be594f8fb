"""The halves of a method, found by name: the name you type is the file that is opened, and there is no registry.

A file in any folder `strategies` or `clients` on Python's path counts: a method of one's own need not lie in this repository.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TypeVar

from ease_flwr.config.section import ConfigError

T = TypeVar("T")


def names(package: str) -> list[str]:
    """Modules of `package` that hold a method: all but those it calls SHARED, and what starts with an underscore."""
    home = import_module(package)
    places = pkgutil.extend_path(list(home.__path__), package)
    return sorted({m.name for m in pkgutil.iter_modules(places) if m.name not in home.SHARED and m.name[0] != "_"})


def find(package: str, name: str, base: type[T]) -> type[T]:
    """The one class of `package`/`name`.py that extends `base`. Raises ConfigError for an unknown name."""
    check(package, name)
    module = import_module(f"{package}.{name}")
    found = [
        c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base) and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ConfigError(f"{package}/{name}.py must define one class that extends {base.__name__}, it has {len(found)}")
    return found[0]


def check(package: str, name: str) -> None:
    """Raises ConfigError if there is no such method."""
    if name not in names(package):
        raise ConfigError(f"no {name!r} in {package}/: there are {', '.join(names(package))}")
