"""`ease deploy upgrade`: other code on the server or on a host, at a moment when no run needs the old one.

A phase that was begun by other code cannot be gone on with (ease_flwr/store/run.py), so it is finished before.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ease_flwr.config import ConfigError, code_hash
from ease_flwr.hosts.backup import at_work, runs

ASK = "from ease_flwr.config import code_hash; print(code_hash())"
PIN = """import sys, pathlib
from ease_flwr.hosts import deploy, pinned
print(pinned.accept(deploy.policy(pathlib.Path(sys.argv[1])).parent, 'installed'))"""


def check(server: Path, superlink: str) -> None:
    """Raises ConfigError where a run of this server has a phase at hand: begun, or being worked at."""
    go_on = f" --superlink {superlink}" if superlink else ""
    for run in runs(server):
        if at_work(run):
            raise ConfigError(f"{run} is at work: wait until it has ended")
        if begun := sorted({f.parent.name for f in run.glob("journal/*/*.safetensors")}):
            raise ConfigError(f"{run}: its phase {begun[0]} was begun by this code: finish it with `ease resume {run}{go_on}`")


def install(what: Path, options: Sequence[str] = ()) -> tuple[str, str]:
    """Install a wheel, or a checkout as it lies there, into this environment; digests of the code before and after.

    options: of pip, for example --no-index. Raises ConfigError where that fails.
    """
    what = what.absolute()
    if not ((what.is_file() and what.suffix == ".whl") or (what / "pyproject.toml").is_file()):
        raise ConfigError(f"{what}: expected a wheel, or the folder of a checkout")
    before = code_hash()
    constraints = ["--constraint", str(what / "constraints.txt")] if (what / "constraints.txt").is_file() else []
    _pip([*constraints, *options, str(what)])  # what it needs, where that is not there
    _pip(["--no-deps", "--force-reinstall", *options, str(what)])  # itself, of the same version too
    return before, _new(ASK, f"{what} is installed, but cannot be used")


def pin(host: Path) -> str:
    """Let what is installed now run on this host: who installs it is its owner. Its digest. Raises ConfigError.

    A host of an earlier version gets its policy.toml by this.
    """
    return _new(PIN, f"what is installed now is not pinned in {host}", str(host))


def _new(code: str, wrong: str, *words: str) -> str:
    """What a line of Python says under the code that is installed now. Raises ConfigError."""
    asked = subprocess.run([sys.executable, "-P", "-c", code, *words], capture_output=True, text=True, check=False)
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or [f"ended with {asked.returncode}"])[-1]
        raise ConfigError(f"{wrong}: {re.sub(r'^[A-Za-z_.]+Error: ', '', said)}")
    return asked.stdout.strip()


def _pip(words: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = [line for line in said if line.lstrip().lower().startswith("error")] or said  # pip's notes come last
        raise ConfigError(f"pip install: {said[-1] if said else 'ended with ' + str(done.returncode)}: the code is as before")
