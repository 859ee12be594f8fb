"""The halves of a method, found by name: the name you type is the file that is opened, and there is no registry.

A method of one's own need not lie in this repository. A file in any folder `strategies` or `clients` on Python's path counts.
So does what an installed package declares as an entry point of the group `ease_flwr.strategies` or `ease_flwr.clients`.
"""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from ease_flwr.config.section import ConfigError

T = TypeVar("T")


def names(half: str) -> list[str]:
    """Modules of a half, "strategies" or "clients", that hold a method: all but those it calls SHARED, and what starts with an
    underscore."""
    home = _home(half)
    files = {m.name for m in pkgutil.iter_modules(home.__path__) if m.name not in home.SHARED and m.name[0] != "_"}
    return sorted(files | entry_points(group=home.__name__).names)


def find(half: str, name: str, base: type[T]) -> type[T]:
    """The one class of `half`/`name`.py that extends `base`. Raises ConfigError for an unknown name."""
    check(half, name)
    group = f"ease_flwr.{half}"
    if find_spec(f"{group}.{name}") is None:
        (declared, *_) = entry_points(group=group, name=name)
        kind = declared.load()
        if not (isinstance(kind, type) and issubclass(kind, base)):
            raise ConfigError(f"entry point {name} of {group}: {declared.value} must be a class that extends {base.__name__}")
        return kind
    module = import_module(f"{group}.{name}")
    found = [
        c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base) and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ConfigError(f"{half}/{name}.py must define one class that extends {base.__name__}, it has {len(found)}")
    return found[0]


def check(half: str, name: str) -> None:
    """Raises ConfigError if there is no such method."""
    if name not in names(half):
        raise ConfigError(f"no {name!r} in {half}/: there are {', '.join(names(half))}")


def own_files(half: str) -> list[Path]:
    """Files of a half that lie elsewhere on Python's path, but for those that have a name of ours."""
    first, *others = _home(half).__path__
    ours = {p.name for p in Path(first).glob("*.py")}
    found = {p.name: p for place in reversed(others) for p in sorted(Path(place).glob("*.py")) if p.name not in ours}
    return list(found.values())


def _home(half: str) -> ModuleType:
    """The package of a half, its path extended by the folders of that name on Python's path. Ours come first: a file of the
    same name does not replace a method of ours."""
    home = import_module(f"ease_flwr.{half}")
    known = {Path(place).resolve() for place in home.__path__}
    found = [folder for entry in sys.path if (folder := Path(entry) / half).is_dir() and folder.resolve() not in known]
    home.__path__ += dict.fromkeys(map(str, found))
    return home
