"""The halves of a method, found by name: the name you type is the file that is opened, and there is no registry.

A method of one's own need not lie in this repository. A file in any folder `strategies` or `clients` on Python's path
counts, if it imports from ease_flwr. So does what an installed package declares as an entry point of the group
`ease_flwr.strategies` or `ease_flwr.clients`.
"""

from __future__ import annotations

import pkgutil
import re
import sys
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from ease_flwr.config.section import ConfigError, among

T = TypeVar("T")


def names(half: str) -> list[str]:
    """Modules of a half, "strategies" or "clients", that hold a method: all but those it calls SHARED, and what starts with an
    underscore."""
    home = _home(half)
    ours = {m.name for m in pkgutil.iter_modules(home.__path__[:1])} - set(home.SHARED)
    found = ours | own_files(half).keys() | entry_points(group=home.__name__).names
    return sorted(name for name in found if name[0] != "_")


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
        raise ConfigError(f"no {name!r} in {half}/: {among(name, names(half))}")


def own_files(half: str) -> dict[str, Path]:
    """By name, files of a half that lie elsewhere on Python's path: those that import from ease_flwr, and those that begin with
    one underscore, which methods share. None has a name of ours."""
    first, *others = _home(half).__path__
    ours = {p.stem for p in Path(first).glob("*.py")}
    found = {p.stem: p for place in reversed(others) for p in sorted(Path(place).glob("*.py"))}
    return {n: p for n, p in found.items() if n not in ours and not n.startswith("__") and (n[0] == "_" or _uses_us(p))}


def _uses_us(file: Path) -> bool:
    """Others may have folders of these names too, with files that are not for us and must not be run."""
    text = file.read_text(encoding="utf-8", errors="replace")
    return re.search(r"^\s*(from|import) ease_flwr\b", text, re.MULTILINE) is not None


def _home(half: str) -> ModuleType:
    """The package of a half, its path extended by the folders of that name on Python's path. Ours come first: a file of the
    same name does not replace a method of ours."""
    home = import_module(f"ease_flwr.{half}")
    known = {Path(place).resolve() for place in home.__path__}
    found = [folder for entry in sys.path if (folder := Path(entry) / half).is_dir() and folder.resolve() not in known]
    home.__path__ += dict.fromkeys(map(str, found))
    return home
