"""The server half: how a method of unlearning runs. The name of a strategy is the module that is opened."""

from __future__ import annotations

from ease_flwr.strategies.base import Method

from ease_flwr.config import ConfigError, Experiment, halves

SHARED = ("assisted", "base", "gsd", "ordinary")
"""Modules that methods are made of, and that are no methods."""


def load(name: str) -> type[Method]:
    """The class of a strategy. Raises ConfigError for an unknown name."""
    return halves.find("strategies", name, Method)


def check_named(experiment: Experiment) -> None:
    """Raises ConfigError where an experiment has settings for a strategy that is not there: nobody would read them."""
    for name in experiment.strategies:
        try:
            halves.check("strategies", name)
        except ConfigError as error:
            raise ConfigError(f"strategies.{name}: {error}") from None
