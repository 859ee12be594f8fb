"""What people bring, made up at random: it is read right, or refused in one line.

    python -m benchmarks.fuzz FILE.json [--minutes M] [--seed N] [--only TARGET ...]

A target makes one thing up, brings it, and says in a few words what it tried: a function (random.Random, empty folder) -> str
in TARGETS of benchmarks/fuzz_settings.py, or of fuzz_indexes.py and fuzz_models.py beside it. A ConfigError is a refusal, in
one line. Whatever else a target raises is a fault: a traceback, or an assertion that something came out as it should.

Each try has a seed of its own, counted on from N, and is the same everywhere: `--only TARGET --seed SEED --minutes 0` makes one
again. Exit status 1 where there was a fault.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

from ease_flwr.config import ConfigError, among

Target = Callable[[random.Random, Path], str]
FILES = ("fuzz_settings", "fuzz_indexes", "fuzz_models")
"""Modules of benchmarks/ with TARGETS."""


def targets() -> dict[str, Target]:
    """All of them by name."""
    there = [name for name in FILES if Path(__file__).with_name(f"{name}.py").is_file()]
    return {name: target for module in there for name, target in import_module(f"benchmarks.{module}").TARGETS.items()}


@dataclass
class Outcome:
    """What the tries of a target came to."""

    tries: int = 0
    refused: int = 0
    """Tries that ended with one line."""
    faults: list[dict[str, str | int]] = field(default_factory=list)
    """seed, error: of each fault."""


def attempt(name: str, target: Target, seed: int, found: Outcome) -> None:
    """One try; what it came to is added to what was found."""
    found.tries += 1
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        try:
            target(random.Random(f"{name} {seed}"), Path(folder))
        except ConfigError:
            found.refused += 1
        except Exception:
            found.faults.append({"seed": seed, "error": (error := traceback.format_exc())})
            print(f"{name}, seed {seed}: {error.strip().splitlines()[-1][:300]}", flush=True)


def main(file: Path, minutes: float, seed: int, only: Collection[str] = ()) -> int:
    """Try the targets in turn until the time is over, each once at least; the number of faults. Writes the file."""
    there = targets()
    if unknown := sorted(set(only) - set(there)):
        raise ConfigError(f"no target {unknown[0]!r}: {among(unknown[0], [*there])}")
    chosen = {name: target for name, target in there.items() if not only or name in only}
    found, ends, at = {name: Outcome() for name in chosen}, time.monotonic() + 60 * minutes, seed
    while at == seed or time.monotonic() < ends:
        for name, target in chosen.items():
            attempt(name, target, at, found[name])
        at += 1
    result = {"seed": seed, "minutes": minutes, "targets": {name: asdict(outcome) for name, outcome in found.items()}}
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, outcome in found.items():
        print(f"{name}: {outcome.tries} tries, {outcome.refused} refused in one line, {len(outcome.faults)} faults")
    return sum(len(outcome.faults) for outcome in found.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="fuzz", description="Bring what is made up at random.")
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument("--minutes", type=float, default=10, help="how long; 0: each target once")
    parser.add_argument("--seed", type=int, default=0, help="of the first try")
    parser.add_argument("--only", nargs="+", default=[], help="targets; none: all")
    told = parser.parse_args()
    try:
        sys.exit(min(1, main(told.file, told.minutes, told.seed, told.only)))
    except ConfigError as error:
        sys.exit(f"fuzz: {error}")
