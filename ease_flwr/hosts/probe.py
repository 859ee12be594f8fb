"""Is the server there, and is it the one that this machine trusts? And is everything of this machine at work?"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from ease_flwr.config import ConfigError
from ease_flwr.hosts import certificates, processes
from ease_flwr.hosts.settings import LINK, NODE, Host, Server, read, split
from ease_flwr.hosts.writing import put

SECONDS = 10.0
"""How long a server may take to answer."""
RUNNING = "running.json"
"""Which process watches over a folder."""
DOOR = "ease_flwr.hosts.door"
"""What a host has in place of Flower's SuperExec."""
FORBIDDEN = "/v1/control/list-nodes"
"""What must not pass nginx: who may call this may run code on the server and on its hosts."""
EXPIRED, OTHER_NAME, OTHER_ADDRESS = 10, 62, 64
"""OpenSSL's numbers of what can be wrong with a certificate."""


@dataclass(frozen=True)
class Seen:
    """What a call to the server has shown."""

    why: str = ""
    """What is wrong; "" is nothing."""
    days: int | None = None
    """Until the server's certificate expires, where it has one."""
    status: int | None = None
    """Of HTTP, where a path was called."""


def probe(server: str, trusted: str = "", file: Path | None = None, name: str = "", path: str = "") -> Seen:
    """Call a server, host:port.

    trusted: certificates of the authorities, from `file`; "" is without TLS.  name: that its certificate must have, by default
    its host's.  path: that is asked for as well.
    """
    host, port = split(server)
    try:
        with socket.create_connection((host, port), SECONDS) as plain:
            if not trusted:
                return Seen()
            with ssl.create_default_context(cadata=trusted).wrap_socket(plain, server_hostname=name or host) as connection:
                until = ssl.cert_time_to_seconds(str((connection.getpeercert() or {})["notAfter"]))
                status = _status(connection, path) if path else None
                return Seen(days=int((until - time.time()) // 86400), status=status)
    except ssl.SSLCertVerificationError as error:
        return Seen(f"{server}: {_unfit(error.verify_code, name or host, file)}")
    except ssl.SSLError:
        return Seen(f"{server} answers without TLS: another program, or a federation made with --insecure")
    except OSError as error:
        return Seen(f"{server} cannot be reached: {error.strerror or error}")


def _status(connection: ssl.SSLSocket, path: str) -> int | None:
    """What an empty POST is answered with; None where that is no HTTP."""
    with contextlib.suppress(OSError):
        connection.sendall(f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        if found := re.match(rb"HTTP/1\.\d (\d{3}) ", connection.recv(64)):
            return int(found[1])
    return None


def _unfit(code: int, name: str, file: Path | None) -> str:
    if code == EXPIRED:
        return "the server's certificate has expired: the operator runs `ease deploy renew`"
    if code in (OTHER_NAME, OTHER_ADDRESS):
        return f"the server's certificate is not for {name}: `server` in {NODE} must be the address of `ease deploy init`"
    return f"the server's certificate is not signed by CA {file}: get the new ca.crt from the operator"


def began(home: Path) -> None:
    """Note that this process watches over a folder."""
    me = psutil.Process()
    put(home / RUNNING, json.dumps({"pid": me.pid, "created": me.create_time()}))


def program(parent: psutil.Process | None, word: str) -> psutil.Process | None:
    """A living process below another, by a word of its command."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end while we look
        below = parent.children(recursive=True) if parent else []
        return next((p for p in below if processes.is_alive(p) and word in processes.command_of(p)), None)
    return None


def health(folder: Path, days: int) -> tuple[bool, str]:
    """Whether all is well with the server or host of a folder, and a line that says what was looked at. Raises ConfigError.

    days: for how many its certificate must be good.
    """
    folder = folder.absolute()
    if folder.is_dir() and not os.access(folder, os.X_OK):
        raise ConfigError(f"{folder} may not be read here: give this command as root, or as the account of the unit")
    if (folder / NODE).is_file():
        host = read(Host, folder / NODE)
        what, address, insecure, name = host.client_name, host.server, host.insecure, ""
        unit, verb, flower, doors = "ease-supernode", "node", "flower-supernode", []
    elif (folder / LINK).is_file():
        server = read(Server, folder / LINK)
        what, address, insecure, name = "server", server.here, server.insecure, "localhost"
        unit, verb, flower, doors = "ease-superlink", "link", "flower-superlink", [] if insecure else [server.door]
    else:
        raise ConfigError(f"{folder}: no {NODE} and no {LINK} in it: expected the folder of a host or of the server")
    trusted = "" if insecure else read_text(folder / "ca.crt")
    seen = [probe(address, trusted, folder / "ca.crt", name)]
    seen += [_closed(probe(door, trusted, folder / "ca.crt", name, FORBIDDEN), door) for door in doors]
    at_work = watcher(folder)
    words = (flower, "flower-superexec" if name else DOOR)
    if at_work:
        wrong = [f"{word} is not there" for word in words if program(at_work, word) is None]
    else:
        wrong = [f"`ease deploy {verb} {folder}` does not run: `journalctl -u {unit}` says why"]
    wrong += [call.why for call in seen if call.why]
    left = min((call.days for call in seen if call.days is not None), default=None)
    if left is not None and left < days:
        wrong.append(f"the server's certificate is good for {left} days more: the operator runs `ease deploy renew`")
    if wrong:
        return False, f"{what}: {'; '.join(wrong)}"
    fits = "no TLS"
    if trusted:
        known = trusted.count("BEGIN CERTIFICATE")
        authorities = f"{known} {'authority' if known == 1 else 'authorities'}"
        fits = f"its certificate fits and is good for {left} days; trusts {authorities}"
    answering = " and ".join([address, *(f"nginx at {door}" for door in doors)])
    return True, f"{what}: {' and '.join(words)} are there, {answering} answer{'' if doors else 's'}, {fits}"


def _closed(seen: Seen, door: str) -> Seen:
    """The same, or what is wrong with nginx: that it is not there, or lets in everybody."""
    if seen.why:
        return Seen(f"nginx: {seen.why}: `journalctl -u ease-proxy` says why")
    if seen.status != 403:
        return Seen(f"{door} answers {seen.status} to {FORBIDDEN}, not 403: is it nginx with nginx.conf of this folder?")
    return seen


def watcher(folder: Path) -> psutil.Process | None:
    """The process that watches over a folder, if there is one."""
    with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):
        noted = json.loads((folder / RUNNING).read_text())
        process = psutil.Process(noted["pid"])
        return process if abs(process.create_time() - noted["created"]) < 2 and processes.is_alive(process) else None
    return None


def read_text(file: Path) -> str:
    """The text of a file that must be there. Raises ConfigError."""
    return read_bytes(file).decode(errors="replace")


def read_bytes(file: Path) -> bytes:
    """The content of a file that must be there. Raises ConfigError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}: it comes with the folder that `ease deploy init` has written") from None


def check_trust(file: Path) -> str:
    """The text of a ca.crt. Raises ConfigError where it has no certificate, or none that is still good."""
    text = read_bytes(file)
    try:
        left = certificates.days_left(text)
    except ValueError:
        raise ConfigError(f"{file}: no certificate in it: get it from the operator again") from None
    if left < 0:
        raise ConfigError(f"{file} expired {-left} days ago: the operator runs `ease deploy rotate-ca`, and sends a new one")
    return text.decode()


def busy(host: str, port: int) -> bool:
    """Whether a port of this machine is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except PermissionError:
            raise ConfigError(f"port {port}: only root may listen there: take one above 1023") from None
        except OSError as error:
            if error.errno == 98:
                return True
            raise ConfigError(f"{host}:{port} is no address of this machine: {os.strerror(error.errno or 0)}") from None
    return False
