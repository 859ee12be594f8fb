"""Processes that we start: their ports, and the end of all of them, whatever ends us.

Without flwr and torch, as the guard imports it too.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil

MARK = "EASE_FLWR_FAMILY"
"""Variable that says to which families a process belongs: their ids, with colons, the innermost last."""
GUARD = "ease_flwr.hosts.guard"
GRACE = 10.0
"""Seconds in which a process that was asked to end may do so by itself."""
LAST = 5.0
"""Seconds for the system to do away with a process that was killed."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody answers on this port of loopback."""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still does something; a zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def command_of(process: psutil.Process) -> str:
    """The command line of a process; "" where it cannot be read."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it; none where it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def members(family: str, known: Iterable[psutil.Process] = ()) -> set[psutil.Process]:
    """Living processes of a family: those with its mark, those known to belong to it, and all that descend from them.

    Descent counts because Ray's workers overwrite their environment with a title, and where the system hides environments.
    Guards do not count: each ends by itself, after its own family.
    """
    found = {p for p in known if is_alive(p)}
    children: dict[int, list[psutil.Process]] = {}
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            children.setdefault(process.ppid(), []).append(process)
            if family in process.environ().get(MARK, "").split(":") and is_alive(process):
                found.add(process)
    todo = list(found)
    while todo:
        below = [p for p in children.get(todo.pop().pid, []) if p not in found and is_alive(p) and GUARD not in command_of(p)]
        found.update(below)
        todo += below
    return {p for p in found if p.pid != os.getpid()}


def end(
    family: str,
    known: Iterable[psutil.Process] = (),
    grace: float = GRACE,
    found: Callable[[psutil.Process], object] = lambda _: None,
) -> int:
    """Ask a family to end, and kill those that have not after `grace` seconds; says how many there were.

    found: is told of each process before that is asked to end.
    """
    everybody = {p for p in known if is_alive(p)}
    for word, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, LAST)):
        limit, told = time.monotonic() + seconds, set[psutil.Process]()
        while left := members(family, everybody):
            for process in left - everybody:
                found(process)
            for process in left - told:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(word)
            told |= left
            everybody |= left
            if time.monotonic() > limit:
                break
            time.sleep(0.1)
    return len(everybody)


class Stopped(SystemExit):
    """A signal has asked this process to end: with the exit status of shells, 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Family:
    """What is started in the `with` block, and all that this starts, ends with the block, with a signal, or with us.

    SIGINT, SIGTERM and SIGHUP raise Stopped in the block, if the main thread entered it and they were not ignored before. A
    guard, a process of its own, does the same clean-up where we are killed.
    """

    def __init__(self, advice: Callable[[], str] = str, grace: float = GRACE) -> None:
        """advice: what to tell somebody who has stopped us, for example how to go on.  grace: as of `end`.

        Raises ConfigError where there is no folder for temporary files.
        """
        from ease_flwr.hosts.surroundings import temporary  # of no use to the guard, and slower than all the rest

        self.id = secrets.token_hex(8)
        self.folder = temporary() / f"ease-flwr-{self.id}"
        """A temporary folder, there in the block."""
        self.advice, self.grace = advice, grace
        self.ending = False
        self._starting = threading.Lock()
        self._started: list[subprocess.Popen[bytes]] = []
        self._known: list[psutil.Process] = []
        self._caught = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Family:
        self._guard = self._start_guard()
        self.folder.mkdir(mode=0o700)  # after the guard, who knows its name already: it never outlives us both
        if threading.current_thread() is threading.main_thread():
            taken = {s: signal.getsignal(s) for s in SIGNALS}
            self._handlers = {s: h for s, h in taken.items() if h not in (signal.SIG_IGN, None)}  # nohup stays nohup
            for number in self._handlers:
                signal.signal(number, self._caught_signal)
        return self

    def start(
        self, command: Sequence[str], log: Path | None, variables: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a member, in a session of its own; what it says is appended to `log`. RuntimeError: the family is ending.

        log: None is where we say things ourselves.  variables: its environment, by default ours.
        """
        with log.open("ab") if log else contextlib.nullcontext() as out, self._starting:
            if self.ending:
                raise RuntimeError(f"{command[0]} is not started: everything is being ended")
            child = subprocess.Popen(
                command, env=self.marked(variables), cwd=cwd, stdout=out, stderr=out, start_new_session=True
            )
            self._started = [p for p in self._started if p.poll() is None] + [child]
            with contextlib.suppress(psutil.Error):
                self._know(psutil.Process(child.pid))
            return child

    def _know(self, process: psutil.Process) -> None:
        self._known = [p for p in self._known if is_alive(p)] + [process]
        with contextlib.suppress(psutil.Error):
            self._tell_guard(f"{process.pid} {process.create_time()}")

    def run(self, command: Sequence[str], log: Path) -> int:
        """Start a member, wait for its end, return its exit status. RuntimeError: the family is ending."""
        status = self.start(command, log).wait()
        if self.ending:
            raise RuntimeError(f"{command[0]} was ended, as is everything")
        return status

    def marked(self, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        """An environment that makes a process a member, of the families around this one too."""
        around = os.environ.get(MARK, "")
        return {**(os.environ if variables is None else variables), MARK: f"{around}:{self.id}" if around else self.id}

    def members(self) -> set[psutil.Process]:
        """Who is alive."""
        return members(self.id, self._known)

    def listens(self, port: int) -> bool:
        """Whether who listens at a port is one of us: another process of the machine may have taken it first."""
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")):
                    return True
        return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._starting:
            self.ending = True
        count = end(self.id, self._known, self.grace, self._know)
        for child in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=1)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._tell_guard("end")
        self._dismiss_guard()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._caught or isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError):  # of a terminal that is gone
                why = signal.Signals(self._caught).name if self._caught else "nobody reads what is said"
                told = filter(None, [f"{count} processes ended", self.advice()])
                print(f"ease: {why}: {'; '.join(told)}", file=sys.stderr, flush=True)
        if self._caught and error is None:
            raise Stopped(self._caught)

    def _caught_signal(self, number: int, frame: FrameType | None) -> None:
        """Raise Stopped, once: the clean-up that follows is not interrupted, neither is one that has just begun."""
        first, self._caught = not self._caught, self._caught or number
        if first and not self.ending and not (frame and frame.f_code is Family.__exit__.__code__):
            raise Stopped(number)

    def _start_guard(self) -> subprocess.Popen[bytes]:
        variables = {k: v for k, v in os.environ.items() if k != MARK}
        here = str(Path(__file__).resolve().parents[2])
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [here, variables.get("PYTHONPATH", "")]))
        command = [sys.executable, "-P", "-m", GUARD, self.id, str(self.folder), str(self.grace)]
        return subprocess.Popen(
            command,
            env=variables,
            cwd="/",
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _tell_guard(self, line: str) -> None:
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):  # of a guard that was killed: it goes on without
            self._guard.stdin.write(f"{line}\n".encode())

    def _dismiss_guard(self) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            self._guard.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
