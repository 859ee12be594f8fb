"""Data sets by name: `kind` in an experiment is the module of this package that is opened."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module

from ease_flwr.config import DataConfig, Experiment, digest, model_sha256, named_file_sha256
from ease_flwr.data.backdoor import Marked
from ease_flwr.data.pairs import World


@lru_cache(maxsize=2)
def load(config: DataConfig, seed: int) -> World:
    """The world of an experiment, kept per process. Raises ValueError with one line when the data are not usable."""
    world: World = import_module(f"ease_flwr.data.{config.kind}").load(config, seed)
    return Marked(world, config.backdoor, seed) if config.backdoor.clients else world


def fingerprint(experiment: Experiment) -> str:
    """What an experiment finds in the files that its settings name: 64 hex digits. Another one means other pairs or weights."""
    said = experiment.data
    world = import_module(f"ease_flwr.data.{said.kind}").load(said, experiment.seed)
    files = [*(named_file_sha256(file) for file in (said.labels, said.parts)), model_sha256(experiment.model)]
    splits = getattr(world, "splits", {}) if said.root else {}
    entries = {split: [[*e.identity, *e.captions, e.label, e.client] for e in found] for split, found in splits.items()}
    return digest(files, entries)
