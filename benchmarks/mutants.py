"""Mistakes made on purpose: each is made in a copy of the code, and the tests that should see it are run there.

    python -m benchmarks.mutants FILE.json [NAME ...] [--jobs N]

The mistakes are in benchmarks/mistakes/: what is changed, and which test files should fail. A mutant is killed where one of
them fails, and survives where all pass. The checkout is never changed. Exit status 1 where a mutant survives.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from ease_flwr.config import APP

TABLE = Path(__file__).with_name("mistakes")
COPIED = ("ease_flwr", "strategies", "clients", "conf", "tests", "benchmarks", "docs", "pyproject.toml")
SECONDS = 600
"""After so many a mutant counts as killed: its tests do not end."""


@dataclass(frozen=True)
class Mutant:
    """One mistake: in `file`, `text` becomes `instead`. `tests` are the files that should see it."""

    name: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]

    def made(self, source: str) -> str:
        """The source with the mistake. Raises ValueError where the text is not there exactly once."""
        if (n := source.count(self.text)) != 1:
            raise ValueError(f"mutant {self.name}: its text is {n} times in {self.file}, not once: mend it in {TABLE.name}/")
        return source.replace(self.text, self.instead)


def table() -> list[Mutant]:
    """All mutants. Raises ValueError where two have one name."""
    files = [tomllib.loads(file.read_text(encoding="utf-8")) for file in sorted(TABLE.glob("*.toml"))]
    found = [Mutant(**{**m, "tests": tuple(m["tests"])}) for content in files for m in content["mutant"]]
    if twice := {m.name for m in found if [x.name for x in found].count(m.name) > 1}:
        raise ValueError(f"{TABLE.name}/: two mutants are called {min(twice)}: rename one")
    return found


def chosen(names: Sequence[str]) -> list[Mutant]:
    """The mutants of these names, or all. Raises ValueError at an unknown name, and at a text that is not there once."""
    there = {m.name: m for m in table()}
    if unknown := [n for n in names if n not in there]:
        raise ValueError(f"no mutant {unknown[0]!r} in {TABLE.name}/: there are {', '.join(there)}")
    for m in there.values():
        m.made((APP / m.file).read_text(encoding="utf-8"))
    return [there[n] for n in names] or list(there.values())


def copy(folder: Path) -> Path:
    """The working tree's code, conf and tests in another folder."""
    for name in COPIED:
        if (APP / name).is_dir():
            shutil.copytree(APP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "figures"))
        else:
            shutil.copy2(APP / name, folder / name)
    return folder


def test(folder: Path, files: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run test files on the code of a folder, up to the first failure."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)


def outcome(mutant: Mutant, folder: Path) -> str:
    """killed, survived, or broken: what no test has run with."""
    file = folder / mutant.file
    source = file.read_text(encoding="utf-8")
    file.write_text(mutant.made(source), encoding="utf-8")
    try:
        return {0: "survived", 1: "killed"}.get(test(folder, mutant.tests).returncode, "broken")
    except subprocess.TimeoutExpired:
        return "killed"
    finally:
        file.write_text(source, encoding="utf-8")


def main(file: Path, names: Sequence[str], jobs: int) -> int:
    """Number of mutants that were not killed. Raises ValueError where the table or the code without mutants is wrong."""
    mutants = chosen(names)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for k in range(jobs):
            copies.put(copy(Path(folder) / str(k)))
        files = sorted({t for m in mutants for t in m.tests})
        began = time.monotonic()
        unchanged = test(Path(folder) / "0", files)
        if unchanged.returncode:
            raise ValueError(f"{' '.join(files)} must pass without a mutant:\n{unchanged.stdout}{unchanged.stderr}")
        print(f"{len(files)} test files pass without a mutant, {time.monotonic() - began:.0f} s", flush=True)

        def one(mutant: Mutant) -> dict[str, str | float]:
            where, started = copies.get(), time.monotonic()
            try:
                found = outcome(mutant, where)
            finally:
                copies.put(where)
            seconds = round(time.monotonic() - started, 1)
            print(f"{found:8}  {mutant.name}  {seconds:.0f} s", flush=True)
            return {"outcome": found, "seconds": seconds}

        with ThreadPoolExecutor(jobs) as pool:
            results = dict(zip([m.name for m in mutants], pool.map(one, mutants), strict=True))
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    alive = [n for n, r in results.items() if r["outcome"] != "killed"]
    print(f"{len(mutants) - len(alive)} of {len(mutants)} mutants killed" + (f", not: {', '.join(alive)}" if alive else ""))
    return len(alive)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="mutants", description="Run the tests on mistakes made on purpose.")
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument("names", nargs="*", help="mutants of benchmarks/mistakes/; none: all")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    told = parser.parse_args()
    try:
        sys.exit(min(1, main(told.file, told.names, max(1, told.jobs))))
    except ValueError as error:
        sys.exit(f"mutants: {error}")
