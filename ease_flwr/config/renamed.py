"""Names that settings had before version 0.2, and what they are called now. An old name is answered with the new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ease_flwr.config.section import ConfigError

_GSD = ("reference", "tau", "energy", "subspace")
_BKE = ("epochs", "batch", "weight", "margin", "evidence", "target", "way", "sides")
EASE = {
    "gsd": "gsd.source",
    **{name: f"gsd.{name}" for name in _GSD},
    "bke": "bke.enabled",
    **{f"bke_{name}": f"bke.{name}" for name in _BKE},
    "project": "projection",
    "lock": "lock.strength",
    **{f"lock_{name}": f"lock.{name}" for name in ("share", "halving", "release")},
}
"""Settings of EASE, which stand in nested sections now."""
EXPERIMENT = {
    "hold": "continuation",
    "data.holders": "data.sharers",
    "data.holdout_repeats": "data.forget_unseen_repeats",
}
"""Sections and fields of an experiment."""


def refuse_old(values: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for the first old name in the values of an experiment; it says the new one."""
    for old, new in EXPERIMENT.items():
        section: Any = values
        for part in old.split("."):
            section = section.get(part) if isinstance(section, Mapping) else None
        if section is not None:
            raise ConfigError(f"{where}: {old} is called {new} since version 0.2: use that name")
