"""`ease run`: a Flower simulation from start to end, with its true exit status and nothing left running.

A local SuperLink of our own (own FLWR_HOME, own port, no dependency sync) is started, the app is submitted to it with
`flwr run`, its events are read from the run directory, and the SuperLink is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

import strategies
from ease_flwr import data
from ease_flwr.audit.summary import read_results, read_run_config
from ease_flwr.core import config
from ease_flwr.core.paths import default_folder

START_SECONDS = 120.0
"""How long the SuperLink may take to listen, and the app to write its first line."""


def run(
    experiment: str,
    strategy: str,
    seed: int,
    run_dir: Path | None,
    fresh: bool,
    assignments: list[str],
    client_cpus: int,
    client_gpus: float,
) -> int:
    """Run an experiment and return the exit status: 0 when it finished. Raises ConfigError before anything is started."""
    overrides: dict[str, Any] = {"seed": seed, **config.parse_assignments(assignments)}
    for key in ("data.root", "model.weights"):  # a path the user typed is relative to where the user stands
        if (value := overrides.get(key)) and Path(value).exists():
            overrides[key] = str(Path(value).absolute())
    checked = config.load(experiment, overrides)
    strategies.load(strategy).check(strategy, checked)
    data.load(checked.data, checked.seed).request(checked.forget)
    if bad := [f"{k}={v}" for k, v in overrides.items() if " " in str(v)]:
        raise config.ConfigError(f"{bad[0]!r}: values with blanks cannot be passed on; use a path without blanks")
    if not (config.APP / "pyproject.toml").is_file():
        raise config.ConfigError(f"no pyproject.toml in {config.APP}: install the checkout with `pip install -e .`")
    folder = (run_dir or default_folder(checked, strategy)).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise config.ConfigError(f"run-dir {folder} is not empty: choose another, or remove it")
    settings = {
        "experiment": experiment,
        "strategy": strategy,
        "run-dir": str(folder),
        "fresh": fresh,
        "seed": int(overrides.pop("seed")),
        "set": " ".join(f"{k}={v}" for k, v in overrides.items()),
    }
    return submit(settings, checked.data.clients, folder, client_cpus, client_gpus)


def audit(finished: Path, level: str, client_cpus: int, client_gpus: float) -> int:
    """Audit a finished run in its folder audit-LEVEL; the exit status, as of `run`. Raises ConfigError at once."""
    finished = finished.absolute()
    read_results(finished)
    settings = read_run_config(finished)
    experiment, _ = config.from_run_config(settings)
    folder = finished / f"audit-{level}"
    if (folder / "state.json").is_file():  # an audit of before: the same question again replaces its answer
        shutil.rmtree(folder)
    settings |= {"run-dir": str(folder), "audit": level}
    return submit(settings, experiment.data.clients, folder, client_cpus, client_gpus)


def submit(settings: dict[str, Any], clients: int, folder: Path, client_cpus: int, client_gpus: float) -> int:
    """Run the app with these settings on a SuperLink of its own, and follow it to its end."""
    nodes = f"num-supernodes={clients} client-resources-num-cpus={client_cpus}"
    if client_gpus:
        nodes += f" client-resources-num-gpus={client_gpus}"
    with tempfile.TemporaryDirectory(prefix="ease-flwr-") as home, SuperLink(Path(home), client_cpus) as link:
        return link.follow(link.submit(settings, nodes), folder)


class SuperLink:
    """A `flower-superlink` in simulation mode that lives as long as the `with` block."""

    def __init__(self, home: Path, threads: int, folder: Path | None = None) -> None:
        """home: FLWR_HOME, a folder of its own.  threads: of each client process.  folder: where it stands (default: home)."""
        self.home = home
        self.folder = folder or home
        self.known: list[psutil.Process] = []
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.environment = {
            **os.environ,
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "OMP_NUM_THREADS": str(threads),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }

    def __enter__(self) -> SuperLink:
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "ease"\n[superlink.ease]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--database", str(self.home / "state.db")]
        command += ["--log-file", str(self.home / "superlink.log"), "--disable-runtime-dependency-installation"]
        self.output = (self.home / "superlink.out").open("wb")
        self.process = subprocess.Popen(
            command, env=self.environment, cwd=self.folder, stdout=self.output, stderr=self.output, start_new_session=True
        )
        limit = time.monotonic() + START_SECONDS
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.__exit__()
                raise RuntimeError(f"the local SuperLink did not start: {self._last_words()}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        """End the SuperLink and all it started: Ray's processes have sessions of their own and outlive a killed parent."""
        simulation = [p for p in self._family() if _is_simulation(p)]
        limit = time.monotonic() + (30 if sys.exc_info()[0] is None else 0)  # lets Ray shut down by itself
        while any(map(_is_alive, simulation)) and time.monotonic() < limit:  # not wait_procs: its parent leaves a zombie
            time.sleep(0.1)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            family = self._family()
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
            psutil.wait_procs(family, timeout=10)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        self.output.close()

    def _family(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self.process.pid)
            found = [*parent.children(recursive=True), parent]
        except psutil.NoSuchProcess:
            found = []
        self.known = [p for p in {*self.known, *found} if _is_alive(p)]
        return self.known

    def submit(self, settings: dict[str, Any], nodes: str) -> str:
        """Hand the app over; returns the id of Flower's run."""
        pairs = " ".join(f"{k}={json.dumps(v)}" for k, v in settings.items())
        said = self._flwr(
            "run", str(config.APP), "ease", "--format", "json", "--run-config", pairs, "--federation-config", nodes
        )
        try:
            answer = json.loads(said[said.index("{") :])
            if not answer["success"]:
                raise ValueError
        except (ValueError, KeyError):
            raise RuntimeError(f"flwr run refused the app: {' '.join(said.split())}") from None
        return str(answer["run-id"])

    def follow(self, run_id: str, folder: Path) -> int:
        """Print the events of a run until it ends; 0 if it finished."""
        position, asked = 0, time.monotonic()
        while True:
            state = _read_state(folder)
            position = _print_new(folder / "log.txt", position)
            if state["status"] == "finished":
                print(f"results in {folder}")
                return 0
            if state["status"] == "failed":
                print(f"ease run: {state['error']}", file=sys.stderr)
                return 1
            if time.monotonic() - asked > 30 or self.process.poll() is not None:  # ended without a last word?
                asked = time.monotonic()
                status = self.status(run_id)
                if _read_state(folder)["status"] in ("", "running") and not status.startswith(
                    ("pending", "starting", "running")
                ):
                    print(f"ease run: the run ended unexpectedly ({status}): {self._last_words()}", file=sys.stderr)
                    return 1
            time.sleep(0.3)

    def status(self, run_id: str) -> str:
        """Flower's word for where a run is, with details."""
        said = self._flwr("ls", "ease", "--run-id", run_id, "--format", "json")
        try:
            entry = json.loads(said[said.index("{") :])["runs"][0]
            return f"{entry['status']} {entry.get('status-details') or ''}".strip()
        except (ValueError, KeyError, IndexError):
            return f"unknown: {' '.join(said.split())[:200]}"

    def _flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            ["flwr", *arguments], env=self.environment, cwd=self.home, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def _listens(self) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def _last_words(self) -> str:
        lines = (self.home / "superlink.out").read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_simulation(process: psutil.Process) -> bool:
    try:
        return "flwr-simulation" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _read_state(folder: Path) -> dict[str, str]:
    try:
        state: dict[str, str] = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return {"status": "", "error": ""}
    return state


def _print_new(log: Path, position: int) -> int:
    """Print what was appended since, and return the new position."""
    if log.is_file():
        with log.open(encoding="utf-8") as f:
            f.seek(position)
            print(f.read(), end="", flush=True)
            return f.tell()
    return position
