"""Machines for trials of a deployment: network and mount namespaces of Linux on one bridge. Needs root, `unshare` and `ip`.

Each has an address of its own, /opt/ease of its own, and no way out. They have no names on the system: they are gone with the
process that holds them, so nothing has to be removed, whatever ends the trial.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ease_flwr.hosts import processes
from ease_flwr.hosts.processes import Family

HOME = Path("/opt/ease")
"""Where each machine has its own folder."""
SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of a service of systemd that says nothing else."""
NEEDED = ("ip", "unshare", "nsenter", "mount")
START_SECONDS = 30.0
LAST_WORDS = 12
"""Lines of a command that failed that are shown."""


class Failed(Exception):
    """Something on a machine did not come out as it should; says what was said there."""


def impossible() -> str:
    """Why there can be no machines here; "" where there can be."""
    if os.geteuid():
        return "needs root: namespaces of networks and mounts"
    if gone := [name for name in NEEDED if shutil.which(name) is None]:
        return f"needs {', '.join(gone)}"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"unshare: {' '.join(tried.stderr.split())}" if tried.returncode else ""


@dataclass(frozen=True)
class Machine:
    """One machine: its folder is what it sees as /opt/ease."""

    name: str
    address: str
    folder: Path
    pid: int
    """The process that holds its namespaces."""
    family: Family

    def at(self, there: str | Path) -> Path:
        """Where a file of the machine lies for us."""
        return self.folder / Path(there).relative_to(HOME)

    def inside(self, command: Sequence[str], variables: dict[str, str], cwd: str | Path) -> list[str]:
        """A command so that it runs on the machine, with these variables and no other."""
        known = {"HOME": str(HOME), "PATH": SYSTEM, "LANG": "C.UTF-8", **variables}
        env = ["env", "-i", f"--chdir={cwd}", *(f"{k}={v}" for k, v in self.family.marked(known).items())]
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--", *env, *command]

    def run(self, line: str, cwd: str | Path = HOME, status: int = 0, **variables: str) -> str:
        """A line as an operator types it, in a shell that has /opt/ease/venv active; what it says. Raises Failed."""
        shell = {"PATH": f"{HOME}/venv/bin:{SYSTEM}", **variables}
        log = self.folder.with_name(f"{self.name}.typed.log")
        before = log.stat().st_size if log.is_file() else 0
        ended = self.family.start(self.inside(["sh", "-c", line], shell, cwd), log).wait()
        with log.open(encoding="utf-8", errors="replace") as f:
            f.seek(before)
            said = f.read()
        if ended != status:
            last = "\n    ".join(said.strip().splitlines()[-LAST_WORDS:])
            raise Failed(f"{self.name}: `{line}` ended with {ended}, not {status}:\n    {last}")
        return said

    def start(self, command: Sequence[str], log: str, variables: dict[str, str], cwd: str | Path) -> subprocess.Popen[bytes]:
        """Start a program that goes on; what it says is in NAME.LOG beside the machine's folder."""
        return self.family.start(self.inside(command, variables, cwd), self.folder.with_name(f"{self.name}.{log}"))

    def copy(self, there: str | Path, to: Machine, as_: str | Path) -> None:
        """Copy a file or a folder to another machine, as scp -rp does."""
        source, target = self.at(there), to.at(as_)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)


class Service:
    """A unit of systemd on a machine, run by its own lines: folder, variables and command, and nothing besides."""

    def __init__(self, machine: Machine, unit: str | Path) -> None:
        self.machine, self.name = machine, Path(unit).stem
        lines = machine.at(unit).read_text(encoding="utf-8").splitlines()
        settings = [line.partition("=")[::2] for line in lines if re.match(r"\w+=", line)]
        self.variables = {"PATH": SYSTEM}
        for value in (v for k, v in settings if k == "Environment"):
            self.variables |= dict(part.split("=", 1) for part in shlex.split(value))
        last = dict(settings)
        self.folder, self.command = last["WorkingDirectory"], shlex.split(last["ExecStart"])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = self.machine.start(self.command, f"{self.name}.log", self.variables, self.folder)

    def stop(self, kill: bool = False) -> None:
        """End the unit with all that it has started, as systemd does: with SIGTERM, and what is left later with SIGKILL.

        kill: with SIGKILL at once.
        """
        assert self.process is not None
        everything = processes.tree(self.process.pid)
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                (process.kill if kill else process.terminate)()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=START_SECONDS)
        for process in filter(processes.is_alive, everything):
            process.kill()
        self.process.wait()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Network:
    """A bridge, and the machines on it: 10.77.0.1, 10.77.0.2, ..."""

    folder: Path
    """Of the machines' folders and of what is said on them; hidden from the machines themselves."""
    family: Family
    machines: dict[str, Machine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.switch = self._held("switch", "true")
        self._in(self.switch, "ip link add name bridge type bridge && ip link set bridge up")

    def add(self, name: str) -> Machine:
        """A new machine."""
        number = len(self.machines) + 1
        folder, address = self.folder / name, f"10.77.0.{number}"
        folder.mkdir()
        pid = self._held(name, f"mount --bind {folder} {HOME} && mount -t tmpfs none {self.folder}")
        port = f"port{number}"
        subprocess.run(
            ["ip", "link", "add", port, "netns", str(self.switch), "type", "veth", "peer", "name", "eth0", "netns", str(pid)],
            check=True,
        )
        self._in(self.switch, f"ip link set {port} master bridge up")
        self._in(pid, f"ip link set lo up && ip address add {address}/24 dev eth0 && ip link set eth0 up")
        self.machines[name] = Machine(name, address, folder, pid, self.family)
        return self.machines[name]

    def _held(self, name: str, prepared: str) -> int:
        """A process that holds new namespaces, once they are prepared."""
        log = self.folder / f"{name}.log"
        script = f"{prepared} && echo ready && exec sleep infinity"
        command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script]
        process, limit = self.family.start(command, log), time.monotonic() + START_SECONDS
        while "ready" not in log.read_text():
            if process.poll() is not None or time.monotonic() > limit:
                raise Failed(f"{name} could not be made: {log.read_text().strip()}")
            time.sleep(0.05)
        return process.pid

    @staticmethod
    def _in(pid: int, script: str) -> None:
        subprocess.run(["nsenter", "--target", str(pid), "--net", "--", "sh", "-c", script], check=True)
