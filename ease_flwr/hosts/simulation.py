"""A run as a simulation, here or on a Ray cluster: a SuperLink of our own, the app submitted to it, nothing left running."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ease_flwr import config, data
from ease_flwr.hosts import cluster, processes, surroundings
from ease_flwr.hosts.link import Link, logged, read_state
from ease_flwr.store.files import unwritable

START_SECONDS = 120.0
"""How long the SuperLink may take to listen."""
SETTLE_SECONDS = 30.0
"""How long Ray may take to shut down by itself when a run has ended."""


@dataclass(frozen=True)
class Where:
    """On what a run takes place: a simulation on this machine, or the federation of a SuperLink that the flwr CLI knows."""

    superlink: str = ""
    """Name of a connection in $FLWR_HOME/config.toml; "" is a simulation."""
    client_cpus: int = 1
    """Simulation: CPU cores of one client."""
    client_gpus: float = 0.0
    """Simulation: share of a GPU that Ray reserves for one client."""
    ray: str = ""
    """Simulation: HOST:PORT of a Ray cluster that this machine is a node of; "" is a Ray of its own on this machine."""
    quorum: float = 0.0
    """Share of the clients that must be there, this time; 0: as the experiment says (federation.quorum)."""


def submit(settings: dict[str, Any], experiment: config.Experiment, folder: Path, where: Where) -> int:
    """Run the app with these settings, and follow it to its end; the exit status, 0 if it finished.

    Raises ConfigError where the folder cannot be written, this machine cannot join the Ray cluster, or Flower refuses the app.
    """
    said = logged(folder)
    if where.superlink:
        link = Link(where.superlink)
        id = link.submit(settings)
        try:
            return link.follow(id, folder, said)
        except KeyboardInterrupt:
            print(
                f"ease: the run goes on there: `ease status {folder}`; `flwr stop {id} {where.superlink}` ends it",
                file=sys.stderr,
            )
            raise
    if why := unwritable(folder):
        raise config.ConfigError(f"run-dir {why}: choose another (--run-dir), or another place for all runs (EASE_FLWR_HOME)")
    clients = len(data.load(experiment.data, experiment.seed).clients)
    nodes = f"num-supernodes={clients} client-resources-num-cpus={where.client_cpus}"
    if where.client_gpus:
        nodes += f" client-resources-num-gpus={where.client_gpus}"
    place = f"the {cluster.nodes(where.ray)} nodes of {where.ray}" if where.ray else "this machine"
    print(f"starting Flower and Ray on {place} for {clients} clients, some ten seconds to half a minute", flush=True)
    with own_superlink(where.client_cpus, advice=lambda: _advice(folder), ray=where.ray) as own:
        return own.follow(own.submit(settings, nodes), folder, said)


def _advice(folder: Path) -> str:
    """What somebody can do who has stopped a run."""
    if read_state(folder)["status"] == "finished":
        return f"the run had finished: {folder}"
    if (folder / "run_config.json").is_file():
        return f"`ease resume {folder}` goes on"
    return "the same command begins again"


class SuperLink(Link):
    """A `flower-superlink` in simulation mode of our own."""

    def __init__(self, family: processes.Family, threads: int, folder: Path | None = None, ray: str = "") -> None:
        """Starts it.  threads: of each client process.  folder: where it stands (default: that of the family).  ray: of Where.

        Raises ConfigError where it does not listen in time.
        """
        self.family = family
        self.home = home = family.folder
        self.port = processes.free_port()
        variables = (
            surroundings.environment(home, threads) | cluster.variables(ray, home) | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        )
        super().__init__("ease", family.marked(variables))
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "ease"\n[superlink.ease]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--database", str(home / "state.db")]
        command += ["--log-file", str(home / "superlink.log"), "--disable-runtime-dependency-installation"]
        self.process = family.start(command, home / "superlink.out", variables, folder or home)
        limit = time.monotonic() + START_SECONDS
        while not processes.listens(self.port) or not family.listens(self.port):
            if not self.alive() or time.monotonic() > limit:
                raise config.ConfigError(f"the local SuperLink did not start: {self.last_words()}: see `ease doctor`")
            time.sleep(0.2)

    def settle(self) -> None:
        """Let Ray shut down by itself."""
        simulations = [p for p in self.family.members() if "flwr-simulation" in processes.command_of(p)]
        limit = time.monotonic() + SETTLE_SECONDS
        while any(map(processes.is_alive, simulations)) and time.monotonic() < limit:
            time.sleep(0.1)

    def alive(self) -> bool:
        return self.process.poll() is None

    def last_words(self, run_id: str = "") -> str:
        """Why Ray has failed; else what the SuperLink has said last."""
        log = self._flwr("log", run_id, self.name, "--show") if run_id and self.alive() else ""
        if why := re.search(r"An exception occured!! (.+)", log):  # Flower's words
            return f"Ray: {why[1]}"
        lines = (self.home / "superlink.out").read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])


@contextmanager
def own_superlink(
    threads: int, folder: Path | None = None, advice: Callable[[], str] = str, ray: str = ""
) -> Iterator[SuperLink]:
    """A SuperLink for as long as the block: then it ends, with all it has started. Arguments as of SuperLink and Family."""
    with processes.Family(advice) as family:
        link = SuperLink(family, threads, folder, ray)
        yield link
        link.settle()
