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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import strategies
from ease_flwr import data
from ease_flwr.audit.summary import read_results, read_run_config
from ease_flwr.core import agenda, config
from ease_flwr.core.paths import default_folder, locked, write_json

START_SECONDS = 120.0
"""How long the SuperLink may take to listen, and the app to write its first line."""


def run(
    experiment: str,
    strategy: str,
    seed: int,
    run_dir: Path | None,
    fresh: bool,
    assignments: list[str],
    where: Where,
    until: str = "",
) -> int:
    """Run an experiment and return the exit status: 0 when it finished. Raises ConfigError before anything is started.

    until: "learn" ends it when it has learnt.
    """
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
    return submit(settings | ({"until": until} if until else {}), checked, folder, where)


def resume(folder: Path, where: Where) -> int:
    """Do what is left of the agenda of a run; the exit status, as of `run`. Raises ConfigError at once."""
    folder = folder.absolute()
    settings = read_run_config(folder)
    experiment, _ = config.from_run_config(settings)
    agenda.read(folder)
    if agenda.busy(folder / "run.lock"):
        print(f"{folder} is at work: waiting for its end; it may do this as well", flush=True)
    with locked(folder / "run.lock", wait=True):
        if not left_to_do(folder) and _read_state(folder)["status"] == "finished":
            print(f"{folder}: everything on its agenda is done")
            return 0
        write_json(folder / "state.json", {"status": "submitted", "error": ""})
    return submit(settings | {"run-dir": str(folder), "resume": True}, experiment, folder, where)


def left_to_do(folder: Path) -> list[str]:
    """Phases of the agenda that are not done."""
    return [name for name in agenda.names(agenda.read(folder)) if not (folder / "phases" / name / "phase.json").is_file()]


def forget(folder: Path, asked: config.ForgetConfig, strategy: str, assignments: list[str], id: str, where: Where) -> int:
    """Put a request on the agenda of a run that has learnt, and do it. Asked twice it is done once. Raises ConfigError."""
    folder = folder.absolute()
    experiment, submission = config.from_run_config(read_run_config(folder))
    own = experiment.strategy if strategy == submission.strategy else {}
    settings = {**own, **config.parse_assignments(assignments)}
    experiment = experiment.model_copy(update={"strategy": settings})
    world = data.load(experiment.data, experiment.seed)
    asked = world.request(asked)
    if unknown := sorted(asked.names() - set(world.clients)):
        raise config.ConfigError(f"no client {', '.join(unknown)}; there are {', '.join(world.clients)}")
    steps = agenda.read(folder)
    before = agenda.everything(steps)
    if len(asked.leaving() | (before.leaving() if before else set())) >= len(world.clients):
        raise config.ConfigError("all clients would have left, nobody would be there to keep anything")
    strategies.load(strategy).check(strategy, experiment.model_copy(update={"forget": asked}))
    step = agenda.request(asked, strategy, settings, id)
    if agenda.append(folder, step):
        print(f"request {step.id}: on the agenda of {folder}")
    else:
        print(f"request {step.id}: asked before, not asked again")
    return resume(folder, where)


def learn(folder: Path, rounds: int, where: Where) -> int:
    """Let those who stay go on learning for some rounds, under the lock. Raises ConfigError."""
    folder = folder.absolute()
    if not any(s.kind == "forget" for s in agenda.read(folder)):
        raise config.ConfigError(
            f"{folder}: nothing was forgotten there yet; learning before that is `learn.rounds` of the run"
        )
    agenda.append(folder, agenda.Step(kind="hold", rounds=rounds))
    return resume(folder, where)


def audit(finished: Path, level: str, where: Where) -> int:
    """Audit a finished run in its folder audit-LEVEL; the exit status, as of `run`. Raises ConfigError at once."""
    finished = finished.absolute()
    read_results(finished)
    settings = read_run_config(finished)
    experiment, _ = config.from_run_config(settings)
    folder = finished / f"audit-{level}"
    if (folder / "state.json").is_file():  # an audit of before: the same question again replaces its answer
        shutil.rmtree(folder)
    settings |= {"run-dir": str(folder), "audit": level}
    return submit(settings, experiment, folder, where)


@dataclass(frozen=True)
class Where:
    """On what a run takes place: a simulation on this machine, or the federation of a SuperLink that the flwr CLI knows."""

    superlink: str = ""
    """Name of a connection in $FLWR_HOME/config.toml; "" is a simulation."""
    client_cpus: int = 1
    """Simulation: CPU cores of one client."""
    client_gpus: float = 0.0
    """Simulation: share of a GPU that Ray reserves for one client."""


def submit(settings: dict[str, Any], experiment: config.Experiment, folder: Path, where: Where) -> int:
    """Run the app with these settings, and follow it to its end."""
    if where.superlink:
        link = Link(where.superlink)
        return link.follow(link.submit(settings), folder)
    clients = len(data.load(experiment.data, experiment.seed).clients)
    nodes = f"num-supernodes={clients} client-resources-num-cpus={where.client_cpus}"
    if where.client_gpus:
        nodes += f" client-resources-num-gpus={where.client_gpus}"
    with tempfile.TemporaryDirectory(prefix="ease-flwr-") as home, SuperLink(Path(home), where.client_cpus) as own:
        return own.follow(own.submit(settings, nodes), folder)


class Link:
    """A SuperLink as the flwr CLI knows it by name."""

    def __init__(self, name: str, environment: dict[str, str] | None = None) -> None:
        self.name = name
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        self.environment = {**os.environ, **quiet, "PATH": path, **(environment or {})}

    def alive(self) -> bool:
        """Whether it is still there; of one that is not ours we do not know."""
        return True

    def last_words(self) -> str:
        """What is to be said when a run ended without a word."""
        return f"see `flwr log` and the logs of the SuperLink {self.name}"

    def submit(self, settings: dict[str, Any], nodes: str = "") -> str:
        """Hand the app over; returns the id of Flower's run."""
        pairs = " ".join(f"{k}={json.dumps(v)}" for k, v in settings.items())
        federation = ("--federation-config", nodes) if nodes else ()
        said = self._flwr("run", str(config.APP), self.name, "--format", "json", "--run-config", pairs, *federation)
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
            if time.monotonic() - asked > 30 or not self.alive():  # ended without a last word?
                asked = time.monotonic()
                status = self.status(run_id)
                if _read_state(folder)["status"] in ("", "submitted", "running") and not status.startswith(
                    ("pending", "starting", "running")
                ):
                    print(f"ease run: the run ended unexpectedly ({status}): {self.last_words()}", file=sys.stderr)
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
        done = subprocess.run(["flwr", *arguments], env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr


class SuperLink(Link):
    """A `flower-superlink` in simulation mode that lives as long as the `with` block."""

    def __init__(self, home: Path, threads: int, folder: Path | None = None) -> None:
        """home: FLWR_HOME, a folder of its own.  threads: of each client process.  folder: where it stands (default: home)."""
        self.home = home
        self.folder = folder or home
        self.known: list[psutil.Process] = []
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        environment = {
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "OMP_NUM_THREADS": str(threads),
        }
        super().__init__("ease", environment)

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
                raise RuntimeError(f"the local SuperLink did not start: {self.last_words()}")
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

    def _listens(self) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def alive(self) -> bool:
        return self.process.poll() is None

    def last_words(self) -> str:
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
