"""Data sets by name: `kind` in an experiment is the module of this package that is opened."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module

from ease_flwr.config import DataConfig
from ease_flwr.data.backdoor import Marked
from ease_flwr.data.pairs import World


@lru_cache(maxsize=2)
def load(config: DataConfig, seed: int) -> World:
    """The world of an experiment, kept per process. Raises ValueError with one line when the data are not usable."""
    world: World = import_module(f"ease_flwr.data.{config.kind}").load(config, seed)
    return Marked(world, config.backdoor, seed) if config.backdoor.clients else world
