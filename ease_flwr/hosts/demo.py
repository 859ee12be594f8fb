"""A federation of processes on this machine, and the proof by it: the same adapters come out as in a simulation."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ease_flwr import config
from ease_flwr.hosts import deploy, processes, registry, settings, watch
from ease_flwr.hosts.link import Link
from ease_flwr.hosts.simulation import Where, submit

Say = Callable[[str], object]
START_SECONDS = 60.0
"""How long the SuperLink may take to listen."""

DEMO = {
    **{"data.clients": 3, "data.exclusive": 4, "data.shared": 3, "data.sharers": 2, "data.strangers": 6},
    **{"data.exclusive_pairs": 24, "data.shared_pairs": 16, "data.scenes": 32, "data.test_repeats": 1, "data.test_scenes": 60},
    **{"data.forget_unseen_repeats": 1, "learn.rounds": 6, "learn.epochs": 3, "learn.batch": 48, "learn.average": 2},
    **{"continuation.rounds": 2, "strategy.rounds": 2, "evaluation.every": 0, "evaluation.reference": "none"},
    "audit.level": "none",
}
"""The built-in world small enough for processes that start anew for every message."""


class Federation:
    """SuperLink, nginx and SuperNodes of a folder of `deploy.init`, as processes of this machine."""

    def __init__(self, folder: Path, family: processes.Family) -> None:
        self.folder, self.family = folder, family
        self.server = folder / "server"
        self.link_settings = settings.read(settings.Server, self.server / settings.LINK)
        self.port = self.link_settings.port
        self.environment = family.marked(watch.environment(self.server, threads=1))
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.reached = self.link_settings.here
        """Where SuperNodes call: the SuperLink itself, until nginx is there."""

    def start_link(self) -> None:
        """Start the SuperLink, and wait until it listens. Raises ConfigError."""
        command = watch.superlink(self.server, self.link_settings)
        self.link = self._listening(command, "superlink.out", self.port)

    def start_proxy(self) -> None:
        """Start nginx before the SuperLink, and wait until it listens. Raises ConfigError."""
        command = [*deploy.proxy(self.server), "-g", "user root;"]  # of who starts this as root: its files are root's alone
        self.proxy = self._listening(command, "nginx.out", self.link_settings.proxy)
        self.reached = self.link_settings.door

    def start_node(self, host: str) -> None:
        """Start the SuperNode of a host, and its door."""
        home = self.folder / "hosts" / host
        here = settings.read(settings.Host, home / settings.NODE).model_copy(
            update={"server": self.reached, "port": processes.free_port(), "data_root": ""}
        )
        variables = self.family.marked(watch.environment(home, threads=1))
        supernode, door = watch.node_programs(home, here)
        self.family.start(door, home / "door.out", variables, home)
        self.nodes[host] = self.family.start(supernode, home / "supernode.out", variables, home)

    def _listening(self, command: Sequence[str], out: str, port: int) -> subprocess.Popen[bytes]:
        """A process of the server, once it listens. Raises ConfigError."""
        started = self.family.start(command, self.server / out, self.environment, self.server)
        limit = time.monotonic() + START_SECONDS
        while not processes.listens(port):
            if started.poll() is not None or time.monotonic() > limit:
                raise config.ConfigError(f"{command[0]} did not start: see {self.server}/{out}")
            time.sleep(0.2)
        return started


@contextmanager
def federation(folder: Path, hosts: Sequence[str], say: Say = print) -> Iterator[Federation]:
    """A new federation on loopback, for as long as the block. Raises ConfigError where it does not start."""
    ports = {"port": processes.free_port(), "loopback_port": processes.free_port()}
    deploy.init(folder, settings.Deployment(address="127.0.0.1", hosts=tuple(hosts), **ports))
    with processes.Family(lambda: f"logs and keys are in {folder}") as family:
        running = Federation(folder, family)
        running.start_link()
        say(f"SuperLink on 127.0.0.1:{running.port}, TLS and node authentication")
        if Path(deploy.NGINX).is_file():
            running.start_proxy()
            say(f"nginx before it on {running.reached}: SuperNodes call there")
        else:
            say(f"no {deploy.NGINX} here: SuperNodes call the SuperLink itself")
        registry.register(running.server, say=lambda _: None)
        for host in hosts:
            running.start_node(host)
            say(f"SuperNode {host}")
        yield running


def demo(folder: Path, say: Say = print) -> int:
    """The small experiment on three SuperNodes with TLS and authentication, then in a simulation: the same adapters?

    Returns the exit status; what was written stays in `folder`.
    """
    hosts = [f"client-{k}" for k in range(3)]
    told = " ".join(f"{k}={v}" for k, v in DEMO.items())
    run = {"experiment": "personas", "strategy": "ease", "fresh": True, "seed": 0, "set": told}
    experiment = config.load("personas", dict(DEMO))
    started = time.monotonic()
    with federation(folder / "federation", hosts, say) as running:
        link = Link(deploy.CONNECTION, running.environment)
        where = folder / "deployed"
        if link.follow(link.submit({**run, "run-dir": str(where)}), where):
            return 1
        say(f"deployed: {time.monotonic() - started:.0f} s")
        say(exchange_seconds(where))
    if submit({**run, "run-dir": str(folder / "simulated")}, experiment, folder / "simulated", Where()):
        return 1
    deployed, simulated = (
        json.loads((folder / n / "results.json").read_text())["adapters_sha256"] for n in ("deployed", "simulated")
    )
    same = deployed == simulated
    say(f"adapters of the deployed run and of the simulation are {'the same, bit for bit' if same else 'NOT the same'}")
    say(f"{time.monotonic() - started:.0f} s in all; logs, runs and keys in {folder}")
    return 0 if same else 1


def exchange_seconds(run: Path) -> str:
    """Where the seconds of an exchange went, on the mean: start of the process, loading, training."""
    found = []
    for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        found += json.loads(text).get("timing", [])
    if not found:
        return ""
    start, load, work = (sum(t[i] for t in found) / len(found) for i in range(3))
    return f"a training message took {start + work:.1f} s: start {start:.1f}, load {load:.1f}, train {work - load:.1f}"
