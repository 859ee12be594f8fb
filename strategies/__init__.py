"""The server half: how a method of unlearning runs. The name of a strategy is the module that is opened."""

from __future__ import annotations

import pkgutil

from ease_flwr.core import halves
from strategies.base import Unlearning

__path__ = pkgutil.extend_path(__path__, __name__)


def load(name: str) -> type[Unlearning]:
    """The class of a strategy. Raises ConfigError for an unknown name."""
    return halves.find("strategies", name, Unlearning)
