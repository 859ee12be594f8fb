"""Machines for trials of a deployment: network and mount namespaces of Linux on one bridge. Needs root, `unshare` and `ip`.

Each has an address of its own, no way out, an /opt/ease and an /etc of its own, and what is installed here, read-only. They
have no names on the system, they are gone with the process that holds them. So nothing is left over, whatever ends the trial.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
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
NEEDED = ("ip", "unshare", "nsenter", "mount", "setpriv", "useradd", "nft", "nginx")
START_SECONDS = 30.0
LAST_WORDS = 12
"""Lines of a command that failed that are shown."""


class TrialError(Exception):
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

    def inside(self, command: Sequence[str], variables: dict[str, str], cwd: str | Path, user: str = "root") -> list[str]:
        """A command so that it runs on the machine, as this account, with these variables and no other."""
        known = {"HOME": str(HOME), "PATH": SYSTEM, "LANG": "C.UTF-8", "LD_LIBRARY_PATH": f"{HOME}/python/lib", **variables}
        env = ["env", "-i", f"--chdir={cwd}", *(f"{k}={v}" for k, v in self.family.marked(known).items())]
        who = [] if user == "root" else ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--no-new-privs"]
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--", *env, *who, *command]

    def run(self, line: str, cwd: str | Path = HOME, status: int = 0, user: str = "root") -> str:
        """A line as an operator types it, with the programs of /opt/ease/venv; what it says. Raises TrialError.

        status: with which it is to end.
        """
        log = self.log("typed")
        before = log.stat().st_size if log.is_file() else 0
        shell = {"PATH": f"{HOME}/venv/bin:{SYSTEM}", "OMP_NUM_THREADS": "1"}
        ended = self.family.start(self.inside(["sh", "-c", line], shell, cwd, user), log).wait()
        with log.open(encoding="utf-8", errors="replace") as f:
            f.seek(before)
            said = f.read()
        if ended != status:
            last = "\n    ".join(said.strip().splitlines()[-LAST_WORDS:])
            raise TrialError(f"{self.name}: `{line}` ended with {ended}, not {status}:\n    {last}")
        return said

    def log(self, name: str) -> Path:
        """Where is what a program says: beside the machine's folder."""
        return self.folder.with_name(f"{self.name}.{name}.log")

    def copy(self, there: str | Path, to: Machine, as_: str | Path) -> None:
        """Copy a file or a folder to another machine, as scp -rp does."""
        source, target = self.at(there), to.at(as_)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy2(source, target)


class Service:
    """A unit of systemd on a machine, run by its own lines and nothing besides: account, folder, command, restarts."""

    def __init__(self, machine: Machine, unit: str | Path) -> None:
        self.machine, self.name = machine, Path(unit).stem
        lines = machine.at(unit).read_text(encoding="utf-8").splitlines()
        settings = [line.partition("=")[::2] for line in lines if re.match(r"\w+=", line)]
        variables = {"PATH": SYSTEM, "OMP_NUM_THREADS": "1"}  # the second for two cores that have it all
        for value in (v for k, v in settings if k == "Environment"):
            variables |= dict(part.split("=", 1) for part in shlex.split(value))
        last = dict(settings)
        masked = ["sh", "-c", f'umask {last.get("UMask", "0022")}; exec "$@"', "sh", *shlex.split(last["ExecStart"])]
        self.command = machine.inside(masked, variables, last["WorkingDirectory"], last.get("User", "root"))
        self.pause = float(last["RestartSec"])
        self.stopped = threading.Event()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and again whenever it ends, until it is stopped."""
        self.stopped.clear()
        self.keeper = threading.Thread(target=self._kept, daemon=True)
        self.keeper.start()

    def _kept(self) -> None:
        with contextlib.suppress(RuntimeError):  # of a family that ends
            while not self.stopped.is_set():
                self.process = self.machine.family.start(self.command, self.machine.log(self.name))
                self.process.wait()
                self.stopped.wait(self.pause)

    def stop(self) -> None:
        """With all that it has started: with SIGTERM, and what is left after a while with SIGKILL."""
        self.stopped.set()
        everything = processes.tree(self.process.pid) if self.process else []
        self._signal(everything, signal.SIGTERM)
        _, left = psutil.wait_procs(everything, START_SECONDS)
        self._signal(left, signal.SIGKILL)
        self.keeper.join()

    def kill(self) -> None:
        """All of it at once with SIGKILL. It comes back by itself."""
        self._signal(processes.tree(self.process.pid) if self.process else [], signal.SIGKILL)

    @staticmethod
    def _signal(everything: Sequence[psutil.Process], number: int) -> None:
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


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

    def add(self, name: str, address: str = "") -> Machine:
        """A new machine. address: of one that it replaces."""
        number = len(self.machines) + 1
        folder, address = self.folder / name, address or self.address(number)
        shared = {sys.base_prefix: "python", sysconfig.get_path("purelib"): "packages"}
        for inside in shared.values():
            (folder / inside).mkdir(parents=True)
        etc = folder.with_name(f"{name}.etc")
        shutil.copytree("/etc", etc, symlinks=True)
        mounts = [f"mount --bind {folder} {HOME}", f"mount --bind {etc} /etc"]
        mounts += [f"mount --bind -o ro {source} {HOME}/{inside}" for source, inside in shared.items()]
        pid = self._held(name, " && ".join([*mounts, f"mount -t tmpfs none {self.folder}"]))
        port = f"port{number}"
        subprocess.run(
            ["ip", "link", "add", port, "netns", str(self.switch), "type", "veth", "peer", "name", "eth0", "netns", str(pid)],
            check=True,
        )
        self._in(self.switch, f"ip link set {port} master bridge up")
        self._in(pid, f"ip link set lo up && ip address add {address}/24 dev eth0 && ip link set eth0 up")
        self.machines[name] = Machine(name, address, folder, pid, self.family)
        return self.machines[name]

    @staticmethod
    def address(number: int) -> str:
        """Of the machine that is added as the first, second, ..."""
        return f"10.77.0.{number}"

    def cut(self, machine: Machine) -> None:
        """Take a machine off the network."""
        self._in(machine.pid, "ip link set eth0 down")

    def _held(self, name: str, prepared: str) -> int:
        """A process that holds new namespaces, once they are prepared."""
        log = self.folder / f"{name}.log"
        script = f"{prepared} && echo ready && exec sleep infinity"
        command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script]
        process, limit = self.family.start(command, log), time.monotonic() + START_SECONDS
        while "ready" not in log.read_text():
            if process.poll() is not None or time.monotonic() > limit:
                raise TrialError(f"{name} could not be made: {log.read_text().strip()}")
            time.sleep(0.05)
        return process.pid

    @staticmethod
    def _in(pid: int, script: str) -> None:
        subprocess.run(["nsenter", "--target", str(pid), "--net", "--", "sh", "-c", script], check=True)
