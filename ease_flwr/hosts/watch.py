"""`ease deploy link` and `ease deploy node`: a SuperLink or a SuperNode, watched so that it never only looks alive.

A SuperNode has our door (door.py) in place of Flower's SuperExec. Both end with a line that says why, and whoever started them
(systemd, Docker) starts them again. What Flower leaves undone: a SuperNode without a SuperExec swallows messages; one that was
shown a certificate it does not trust gives up and stays.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from ease_flwr.config import ConfigError
from ease_flwr.hosts import certificates, processes, surroundings
from ease_flwr.hosts.policy import POLICY, read_policy
from ease_flwr.hosts.probe import DOOR, RUNNING, began, busy, check_trust, probe, program, read_bytes
from ease_flwr.hosts.settings import DOOR_KEY, INSIDE, LINK, NODE, Host, Server, read
from ease_flwr.hosts.writing import SECRET, put, remove

EVERY = 10.0
"""Seconds between two looks."""
PATIENCE = 60.0
"""Seconds for which the server may be away, or a SuperNode without a connection."""
RESTING = 30.0
"""Seconds for which a SuperExec may be missing."""
Say = Callable[[str], object]


class Complaint:
    """Something that may be amiss for a while, and no longer."""

    def __init__(self, look: Callable[[], str], patience: float) -> None:
        """look: says what is amiss; "" is nothing.  patience: seconds."""
        self.look, self.patience = look, patience
        self.since: float | None = None
        self.last = ""

    def told(self, say: Say) -> str:
        """What has been amiss for too long; "" is nothing. Says what is new."""
        why, now = self.look(), time.monotonic()
        if why and self.since is None:
            self.since = now
        if why != self.last:
            say(f"{why} (waiting {self.patience:.0f} s)" if why else f"no longer: {self.last}")
        self.last = why
        self.since = self.since if why else None
        return why if self.since is not None and now - self.since > self.patience else ""


def link(folder: Path, say: Say = print) -> str:
    """Start the SuperLink of a server's folder, and watch it; returns why it has ended. Raises ConfigError at the start."""
    folder = folder.absolute()
    settings = read(Server, folder / LINK)
    trusted = "" if settings.insecure else _server_files(folder)
    if busy(INSIDE, settings.port):
        raise ConfigError(f"port {settings.port} is taken: end the program that listens there, or change {folder / LINK}")

    def reached() -> str:
        return probe(settings.here, trusted, folder / "ca.crt", "localhost").why

    def complaints(child: psutil.Process) -> list[Complaint]:
        def superexec() -> str:
            return "" if program(child, "flower-superexec") else "the flower-superexec of flower-superlink is gone"

        return [Complaint(reached, PATIENCE), Complaint(superexec, RESTING)]

    return _watched(folder, [superlink(folder, settings)], complaints, say)


def node(folder: Path, say: Say = print) -> str:
    """Start the SuperNode of a host's folder, and watch it; returns why it has ended. Raises ConfigError at the start."""
    folder = folder.absolute()
    settings = read(Host, folder / NODE)
    trusted = "" if settings.insecure else _host_files(folder)
    for key, is_there in (("data_root", Path.is_dir), ("base_model", Path.is_file)):
        if (value := getattr(settings, key)) and not is_there(Path(value)):
            raise ConfigError(f"{folder / NODE}: {key.replace('_', '-')} {value} is not there, or may not be read here")
    read_policy(folder / POLICY)
    if busy(INSIDE, settings.port):
        raise ConfigError(f"port {settings.port} of 127.0.0.1 is taken: does this SuperNode run? Or change {folder / NODE}")

    def reached() -> str:
        return probe(settings.server, trusted, folder / "ca.crt").why

    def complaints(child: psutil.Process) -> list[Complaint]:
        def connected() -> str:
            return "" if calls(child, settings.port) or reached() else f"the SuperNode has given up calling {settings.server}"

        return [Complaint(reached, PATIENCE), Complaint(connected, PATIENCE)]

    return _watched(folder, node_programs(folder, settings), complaints, say)


def superlink(folder: Path, settings: Server) -> list[str]:
    """The command of the SuperLink, run in its folder. Whoever reaches it may run code here: it listens on loopback alone."""
    safe = ["--ssl-ca-certfile", str(folder / "ca.crt"), "--ssl-certfile", str(folder / "server.pem")]
    safe += ["--ssl-keyfile", str(folder / "server.key"), "--enable-supernode-auth"]
    return [
        *("flower-superlink", "--host", INSIDE, "--port", str(settings.port)),
        *(["--insecure"] if settings.insecure else safe),
        *("--database", str(folder / "state.db"), "--disable-runtime-dependency-installation"),
    ]


def node_programs(folder: Path, settings: Host) -> list[list[str]]:
    """The commands of a host, once they have a key between them: the SuperNode, and the door that takes its messages."""
    (folder / DOOR_KEY).parent.mkdir(exist_ok=True)
    put(folder / DOOR_KEY, secrets.token_bytes(32), SECRET)
    door = [sys.executable, "-P", "-m", DOOR, str(folder), f"127.0.0.1:{settings.port}"]
    return [supernode(folder, settings), door]


def supernode(folder: Path, settings: Host) -> list[str]:
    """The command of a host's SuperNode. Its node config is what client_app.py reads, with the host's folder and policy."""
    safe = ["--root-certificates", str(folder / "ca.crt"), "--auth-supernode-private-key", str(folder / "node.key")]
    own = {n.replace("_", "-"): getattr(settings, n) for n in ("client_name", "data_root", "cache", "base_model", "device")}
    given = " ".join(
        f'{key}="{value}"' for key, value in {**own, "home": str(folder), "policy": str(folder / POLICY)}.items() if value
    )
    return [
        *("flower-supernode", *(["--insecure"] if settings.insecure else safe), "--superlink", settings.server),
        *("--host", "127.0.0.1", "--port", str(settings.port), "--node-config", given),
        *("--isolation", "process", "--superexec-auth-secret-file", str(folder / DOOR_KEY)),
    ]


def environment(folder: Path, threads: int = 0) -> dict[str, str]:
    """Variables of everything that runs for a folder: what Flower keeps is in flwr/, runs and the cache are in runs/."""
    return surroundings.environment(folder / "flwr", threads) | {"EASE_FLWR_HOME": str(folder / "runs")}


def calls(process: psutil.Process, own: int) -> bool:
    """Whether a process has a connection to somebody, other than those at its own port."""
    try:
        there = process.net_connections("tcp")
    except psutil.Error:
        return True  # that it has ended is seen elsewhere; that it may not be looked at is no fault of its own
    return any(c.status == psutil.CONN_ESTABLISHED and c.laddr.port != own for c in there)


def _watched(folder: Path, commands: list[list[str]], complaints: Callable[[psutil.Process], list[Complaint]], say: Say) -> str:
    """Start commands in a folder, and wait for the end of one or for a complaint that lasts; returns why it has ended.

    complaints: about the first of them.
    """
    (folder / "flwr").mkdir(exist_ok=True)
    with processes.Family() as family:
        started = [family.start(command, None, environment(folder), folder) for command in commands]
        began(folder)
        try:
            why = _lasting(started, complaints(psutil.Process(started[0].pid)), say)
            ended = next((n for n, process in enumerate(started) if process.poll() is not None), 0)
            return why or _last_word(commands[ended][0] if not ended else f"python -m {DOOR}", started[ended])
        finally:
            remove(folder / RUNNING)


def _lasting(started: list[subprocess.Popen[bytes]], complaints: list[Complaint], say: Say) -> str:
    """Wait until one of these processes has ended, "", or until a complaint lasts: what it says."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            started[0].wait(EVERY)
        if any(process.poll() is not None for process in started):
            return ""
        if why := next(filter(None, (c.told(say) for c in complaints)), ""):
            return why


def _last_word(program: str, ended: subprocess.Popen[bytes]) -> str:
    if ended.returncode < 0:
        return f"{program} was killed by signal {-ended.returncode}"
    advice = "" if program != "flower-supernode" else ". Is this host's key registered (`ease deploy register` on the server)?"
    return f"{program} has ended with status {ended.returncode}, see above{advice}"


def _server_files(folder: Path) -> str:
    certificate, key = read_bytes(folder / "server.pem"), read_bytes(folder / "server.key")
    trusted = check_trust(folder / "ca.crt")
    try:
        left, fit = certificates.days_left(certificate), certificates.fits(certificate, key)
        signed = certificates.is_signed(certificate, trusted.encode())
    except ValueError as error:
        raise ConfigError(f"{folder}/server.pem, server.key: cannot be read: {error}") from None
    if left < 0:
        raise ConfigError(f"{folder}/server.pem expired {-left} days ago: `ease deploy renew`, and carry the new one here")
    if not fit:
        raise ConfigError(f"{folder}/server.pem is not of server.key: carry both here again")
    if not signed:
        raise ConfigError(f"{folder}/server.pem is not signed by {folder}/ca.crt: carry both here again")
    return trusted


def _host_files(folder: Path) -> str:
    key = read_bytes(folder / "node.key")
    try:
        certificates.public_half(key)
    except ValueError as error:
        raise ConfigError(f"{folder}/node.key: {error}: get it from the operator again (`ease deploy replace-key`)") from None
    return check_trust(folder / "ca.crt")
