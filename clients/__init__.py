"""The client half: what a client does when it is asked to train or is audited. The name of an objective is the module that is
opened."""

from __future__ import annotations

from ease_flwr.clients.base import LoraClient

from ease_flwr.config import halves

SHARED = ("base", "encoding", "forgetting", "judging", "locking", "probing")
"""Modules that objectives are made of, and that are no objectives."""


def load(name: str) -> type[LoraClient]:
    """The client class of an objective. Raises ConfigError for an unknown name."""
    return halves.find("clients", name, LoraClient)
