"""The client half: what a client does with an Instruction. The name of an objective is the module that is opened."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from clients.base import LoraClient


def names() -> list[str]:
    """Objectives there are."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "base"))


def load(name: str) -> type[LoraClient]:
    """The client class of an objective. Raises ValueError for an unknown name."""
    if name not in names():
        raise ValueError(f"no objective {name!r} here: there are {', '.join(names())}")
    module = import_module(f"clients.{name}")
    (found,) = (
        c
        for c in vars(module).values()
        if isinstance(c, type) and c.__module__ == module.__name__ and issubclass(c, LoraClient)
    )
    return found
