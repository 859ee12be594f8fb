"""A SuperLink as the flwr CLI knows it by name: the app is submitted to it, and the run is followed to its end."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ease_flwr.config import ConfigError, encoded
from ease_flwr.hosts import app, surroundings
from ease_flwr.store import queue


class Link:
    """A SuperLink as the flwr CLI knows it by name."""

    def __init__(self, name: str, environment: dict[str, str] | None = None) -> None:
        """environment: of the flwr CLI; by default `surroundings.environment()`, with the user's own connections."""
        self.name = name
        self.environment = environment or surroundings.environment()

    def alive(self) -> bool:
        """Whether it is still there; of one that is not ours we do not know."""
        return True

    def last_words(self, run_id: str = "") -> str:
        """What is to be said when a run ended without a word."""
        return f"see `flwr log {run_id}` and the logs of the SuperLink {self.name}"

    def submit(self, settings: dict[str, Any], nodes: str = "") -> str:
        """Hand the app over; returns the id of Flower's run. Raises ConfigError where Flower refuses it."""
        asked = queue.requests(queue.read(Path(settings["run-dir"]))) if settings.get("resume") else []
        methods = {settings["strategy"], *(r.strategy for r in asked)}
        federation = ("--federation-config", nodes) if nodes else ()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run-config.toml"  # an argument of a command has an end
            file.write_text(f'document = "{encoded(settings)}"\n', encoding="ascii")
            told = ("--format", "json", "--run-config", str(file), *federation)
            said = self._flwr("run", str(app.folder(methods)), self.name, *told)
        try:
            answer: dict[str, Any] = json.loads(said[said.index("{") :])
        except ValueError:
            answer = {"error-message": said}
        if not answer.get("success"):
            why = " ".join(str(answer.get("error-message")).split())
            raise ConfigError(f"flwr run refused the app: {why}")
        return str(answer["run-id"])

    def follow(self, run_id: str, folder: Path, position: int = 0) -> int:
        """Print the events of a run until it ends; 0 if it finished. position: how much of its log is known already."""
        asked = time.monotonic()
        while True:
            state = read_state(folder)
            position = _print_new(folder / "log.txt", position)
            if state["status"] == "finished":
                print(f"results in {folder}")
                if state["error"]:  # of a request that was set aside
                    print(f"ease: {state['error']}", file=sys.stderr)
                return 1 if state["error"] else 0
            if state["status"] == "failed":
                print(f"ease run: {state['error']}", file=sys.stderr)
                return 1
            if time.monotonic() - asked > 30 or not self.alive():  # ended without a last word?
                asked = time.monotonic()
                status = self.status(run_id)
                if read_state(folder)["status"] in ("", "submitted", "running") and not status.startswith(
                    ("pending", "starting", "running")
                ):
                    print(f"ease run: the run ended unexpectedly ({status}): {self.last_words(run_id)}", file=sys.stderr)
                    return 1
            time.sleep(0.3)

    def status(self, run_id: str) -> str:
        """Flower's word for where a run is, with details."""
        said = self._flwr("ls", self.name, "--run-id", run_id, "--format", "json")
        try:
            entry = json.loads(said[said.index("{") :])["runs"][0]
            return f"{entry['status']} {entry.get('status-details') or ''}".strip()
        except (ValueError, KeyError, IndexError):
            return f"unknown: {' '.join(said.split())[:200]}"

    def _flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            ["flwr", *arguments], env=self.environment, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        return done.stdout + done.stderr


def read_state(folder: Path) -> dict[str, str]:
    """What state.json of a run says: `status` and `error`; both are empty where there is none yet. Raises ConfigError."""
    file = folder / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return {"status": str(state["status"]), "error": str(state["error"])}
    except (FileNotFoundError, NotADirectoryError):
        return {"status": "", "error": ""}
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{file}: not the state of a run ({why}): remove it, and `ease resume {folder}` goes on") from None


def logged(folder: Path) -> int:
    """How many bytes the log of a run has."""
    log = folder / "log.txt"
    return log.stat().st_size if log.is_file() else 0


def _print_new(log: Path, position: int) -> int:
    """Print what was appended since, and return the new position."""
    if log.is_file():
        with log.open(encoding="utf-8", errors="replace") as f:
            f.seek(position)
            print(f.read(), end="", flush=True)
            return f.tell()
    return position
