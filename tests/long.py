"""Checks that take too long for CI: `python -m tests.long NAME` runs one and leaves its dated result in tests/long_results/.

A result holds a digest of the code that it checked. A quick test fails where that code has changed since: run the check again.
Checks on machines of their own, in namespaces, need root and half an hour: run them before a release.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ease_flwr.config import APP, code_of
from ease_flwr.config.request import now

RESULTS = APP / "tests" / "long_results"
SKIPPED = 77
"""Exit status of a check that cannot be made on this machine; its last line says why."""
HOSTS = tuple(f"ease_flwr.hosts.{name}" for name in ("backup", "certificates", "deploy", "status", "upgrade"))
RUN = ("ease_flwr.server_app", "ease_flwr.client_app", "ease_flwr.data.personas", "ease_flwr.clients.contrastive")


def halves(strategy: str, objective: str) -> tuple[str, str]:
    """Modules of a method."""
    return f"ease_flwr.strategies.{strategy}", f"ease_flwr.clients.{objective}"


@dataclass(frozen=True)
class Check:
    """A check in a process of its own. covers: modules that it checks, with all that they import."""

    what: str
    command: tuple[str, ...]
    covers: tuple[str, ...]
    follows: bool = True
    """Whether a quick test demands a result as new as the code; not of checks on machines of their own."""

    def code(self) -> str:
        """Digest of the code that it checks."""
        return code_of(*self.covers)


CHECKS = {
    "sequences": Check(
        "random sequences of requests, crashes, departures and purges",
        ("-m", "pytest", "-q", "-m", "long", "tests/test_sequences.py"),
        (*RUN, "ease_flwr.launcher", "ease_flwr.store.purge", "ease_flwr.audit.receipt", *halves("npo", "npo")),
    ),
    "hosts-sequences": Check(
        "random sequences of requests on hosts that leave, go away, come back, join, and change their data",
        ("-m", "pytest", "-q", "-m", "long", "tests/test_host_sequences.py"),
        (*RUN, "ease_flwr.launcher", "ease_flwr.data.folder", "ease_flwr.store.tombstones", *halves("npo", "npo")),
    ),
    "answers": Check(
        "2,500 generated answers of a hostile client to each kind of message",
        ("-m", "pytest", "-q", "-m", "slow", "--hypothesis-profile=many", "tests/test_hostile_answers.py"),
        ("ease_flwr.exchange.training", "ease_flwr.exchange.evaluation", "ease_flwr.audit.measures"),
    ),
    "kills": Check(
        "SIGKILL at twenty random moments, resumed to the same bits",
        ("-m", "tests.kill_9", "FOLDER", "20"),
        (*RUN, *halves("ease", "bilateral")),
    ),
    "kinds": Check(
        "each kind of invented association sits in the tower that has to learn it",
        ("-m", "pytest", "-q", "-m", "long", "tests/test_kinds.py"),
        (*RUN, *halves("ease", "bilateral")),
    ),
    "photographs": Check(
        "real photographs: learn, forget, continue, audit; and a base model of two real pretrained towers",
        ("-m", "pytest", "-q", "-m", "long", "tests/test_align.py", "tests/test_photographs.py"),
        (*RUN, "ease_flwr.data.photographs", "ease_flwr.data.align", *halves("ease", "bilateral")),
    ),
    "paper-scale": Check(
        "ViT-B/32 in half precision: learn, forget, continue, audit",
        ("-m", "pytest", "-q", "-m", "long", "tests/test_paper_scale.py"),
        (*RUN, "ease_flwr.data.photographs", *halves("ease", "bilateral")),
    ),
    "fuzz": Check(
        "ten minutes of settings, requests, indexes, pictures and models that are made up",
        ("-m", "benchmarks.fuzz", "FOLDER/fuzz.json", "--minutes", "10"),
        ("ease_flwr.config.submission", "ease_flwr.data.photographs", "ease_flwr.model.published"),
    ),
    "hosts": Check(
        "a federation of separate hosts, in namespaces: from `ease deploy init` to a verified receipt",
        ("-m", "benchmarks.hosts", "FOLDER/hosts.json"),
        (*RUN, "ease_flwr.cli.hosts", "ease_flwr.launcher", *HOSTS, *halves("ease", "bilateral")),
        follows=False,
    ),
    "ray": Check(
        "a simulation on a Ray cluster of two nodes, one of which is killed",
        ("-m", "tests.ray_cluster", "FOLDER"),
        (*RUN, "ease_flwr.hosts.simulation"),
        follows=False,
    ),
}


def run(name: str) -> int:
    """Run a check and write its result; the exit status of the check."""
    check, code, started = CHECKS[name], CHECKS[name].code(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(word.replace("FOLDER", folder) for word in check.command)]
        done = subprocess.run(command, cwd=APP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout)
    result = {"what": check.what, "date": now(), "seconds": round(time.monotonic() - started), "code": code}
    result |= {"passed": done.returncode == 0, "said": done.stdout.strip().splitlines()[-1]}
    result |= {"skipped": result["said"]} if done.returncode == SKIPPED else {}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return done.returncode


def result_of(name: str) -> dict[str, Any]:
    """The last result of a check; empty where there is none."""
    file: Path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in CHECKS:
        sys.exit(f"usage: python -m tests.long NAME, one of: {', '.join(CHECKS)}")
    sys.exit(run(sys.argv[1]))
