"""s: how far a number of one training lies from that of another, when nothing differs but the order of data.

A cell is one federation with one forget set. It has two retrainings, *retrain* and *retrain_2*. With d the difference of
their numbers, s is sqrt(mean of d^2 / 2) over cells. `ease noise` pools cells into conf/noise/NAME.json. Without that
file a run has its own two retrainings, if there are two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ease_flwr import config
from ease_flwr.audit.intervals import Measure
from ease_flwr.audit.summary import current_audit, read_results
from ease_flwr.config import ConfigError
from ease_flwr.store.files import write_json

TWO_SIDED = ("distance", "ks")
"""Numbers that are differences of two models already."""


@dataclass(frozen=True)
class Noise:
    """What is known of s: by number, s and from how many cells; and where from, in words."""

    s: Mapping[str, tuple[float, int]]
    source: str

    def on(self, numbers: Mapping[str, Measure]) -> dict[str, Measure]:
        """Numbers with s, where it is known, and intervals that are no narrower."""
        return {key: m.with_noise(*self.s[key]) if key in self.s else m for key, m in numbers.items()}


def spread(differences: Sequence[float]) -> float:
    """s of a number from its differences between two trainings, a cell each."""
    return float(mean(d * d / 2 for d in differences) ** 0.5)


def differences(again: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """d of every number, from those of *retrain_2* beside *retrain* as audit.json has them."""
    found = {key: m.get("value" if key.startswith(TWO_SIDED) else "gap") for key, m in again.items()}
    return {key: d for key, d in found.items() if d is not None}


def file_of(experiment: str) -> Path:
    """Where the noise of an experiment is kept."""
    return config.APP / "conf" / "noise" / f"{experiment}.json"


def known(experiment: str, own: Mapping[str, float]) -> Noise:
    """s from the experiment's file, else from a run's own two retrainings. own: their differences, none where there is one.

    Raises ConfigError for a file that cannot be read.
    """
    file = file_of(experiment)
    name = file.relative_to(config.APP).as_posix()
    s = {key: (spread([d]), 1) for key, d in own.items()}
    if not file.is_file():
        return Noise(s, "noise s from this run's two retrainings alone" if s else f"noise s unknown: one retraining, no {name}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pooled = {key: (float(found["s"]), int(found["cells"])) for key, found in content["numbers"].items()}
        return Noise(s | pooled, f"noise s from {content['cells']} cell{'s' * (content['cells'] > 1)} in {name}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: {error}: write it again with `ease noise`, or remove it") from None


def pool(folders: Sequence[Path]) -> dict[str, Any]:
    """The noise of one experiment, from all audited runs in these folders that have two retrainings.

    Runs that have the same two, as cells of a comparison have, count once. Raises ConfigError where there is none.
    """
    cells: dict[tuple[str, str], dict[str, float]] = {}
    names, seeds = set[str](), dict[tuple[str, str], int]()
    for run in (r for folder in folders for r in _runs(folder)):
        results = read_results(run)
        _, audit = current_audit(run, results)
        if "retrain_2" in audit.get("numbers", {}):
            sha = audit["adapters_sha256"]
            cell = sha["retrain"], sha["retrain_2"]
            cells[cell] = differences(audit["numbers"]["retrain_2"]) | cells.get(cell, {})
            seeds[cell] = results["seed"]
            names.add(results["experiment"])
    if not names:
        raise ConfigError(f"{folders[0]}: no audited run there has two retrainings: give runs with evaluation.references=2")
    if len(names) > 1:
        raise ConfigError(f"{folders[0]}: runs of {', '.join(sorted(names))}: give those of one experiment")
    by_key: dict[str, list[float]] = {}
    for found in cells.values():
        for key, d in found.items():
            by_key.setdefault(key, []).append(d)
    numbers = {key: {"s": round(spread(ds), 6), "cells": len(ds)} for key, ds in sorted(by_key.items())}
    return {"experiment": names.pop(), "cells": len(cells), "seeds": sorted(seeds.values()), "numbers": numbers}


def write(folders: Sequence[Path], to: Path | None) -> tuple[Path, dict[str, Any]]:
    """Write what `pool` finds to a file, by default to that of its experiment."""
    found = pool(folders)
    file = to or file_of(found["experiment"])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    return file, found


def _runs(folder: Path) -> list[Path]:
    """A run, or all runs below a folder."""
    if (folder / "results.json").is_file():
        return [folder]
    return sorted(p.parent for p in folder.rglob("results.json"))
