"""The server half: how a method of unlearning runs. The name of a strategy is the module that is opened."""

from __future__ import annotations

from ease_flwr.core import halves
from strategies.base import Unlearning


def load(name: str) -> type[Unlearning]:
    """The class of a strategy. Raises ConfigError for an unknown name."""
    return halves.find("strategies", name, Unlearning)
