"""The server half: how a method of unlearning runs. The name of a strategy is the module that is opened."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ease_flwr.core.config import ConfigError
from strategies.base import Unlearning


def names() -> list[str]:
    """Strategies there are."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "base"))


def load(name: str) -> type[Unlearning]:
    """The class of a strategy. Raises ConfigError for an unknown name."""
    if name not in names():
        raise ConfigError(f"no strategy {name!r}: there are {', '.join(names())}")
    module = import_module(f"strategies.{name}")
    (found,) = (
        c
        for c in vars(module).values()
        if isinstance(c, type) and c.__module__ == module.__name__ and issubclass(c, Unlearning)
    )
    return found
