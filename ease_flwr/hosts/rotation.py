"""Certificates that expire, or whose authority does, or was seen by others: new ones, without a host that is ever cut off.

A new authority comes in two steps. Between them, all trust both.
"""

from __future__ import annotations

from pathlib import Path

from ease_flwr.config import ConfigError
from ease_flwr.hosts import certificates
from ease_flwr.hosts.deploy import AUTHORITY, INSTALL, secure, steps
from ease_flwr.hosts.settings import Deployment
from ease_flwr.hosts.writing import SECRET, move, put

NEXT = "next.pem"
"""In ca/: the authority that is to come."""


def rotate(folder: Path) -> str:
    """First step: a new authority, and a ca.crt with both; returns what is to be done. Raises ConfigError."""
    secure(folder)
    now, coming = _authority(folder, AUTHORITY), folder / "ca" / NEXT
    if not coming.is_file():
        put(coming, certificates.new_authority(), SECRET)
    _trust(folder, now, coming.read_bytes())
    return steps(
        [
            f"carry {folder}/hosts/NAME/ to every host; {INSTALL}",
            "wait until `ease deploy health` says on every host that it trusts 2 authorities",
            f"ease deploy rotate-ca {folder} --finish",
        ]
    )


def finish(folder: Path) -> str:
    """Second step: the server's certificate from the new authority, and a ca.crt with it alone. Raises ConfigError."""
    plan = secure(folder)
    if not (folder / "ca" / NEXT).is_file():
        raise ConfigError(f"{folder}: no rotation has begun: first `ease deploy rotate-ca {folder}`")
    now, coming = _authority(folder, AUTHORITY), _authority(folder, NEXT)
    _certify(folder, plan, coming)
    _trust(folder, coming)
    put(folder / "ca" / f"retired-{certificates.name_of(now)}.pem", now, SECRET)
    move(folder / "ca" / NEXT, folder / "ca" / AUTHORITY)
    return steps(
        [
            _to_the_server(folder),
            f"whenever it suits, carry {folder}/hosts/NAME/ to every host; {INSTALL}: it trusts the new authority alone then",
        ]
    )


def renew(folder: Path) -> str:
    """A certificate of the server that is good for longer, from the authority of the present one. Raises ConfigError."""
    plan = secure(folder)
    certificate, coming = folder / "server" / "server.pem", folder / "ca" / NEXT
    finishing = (
        certificate.is_file() and coming.is_file() and certificates.is_signed(certificate.read_bytes(), coming.read_bytes())
    )
    _certify(folder, plan, _authority(folder, NEXT if finishing else AUTHORITY))
    return steps([_to_the_server(folder)])


def _authority(folder: Path, name: str) -> bytes:
    try:
        return (folder / "ca" / name).read_bytes()
    except OSError as error:
        raise ConfigError(f"{folder}/ca/{name}: {error.strerror}: put ca/ back for this command, offline") from None


def _certify(folder: Path, plan: Deployment, authority: bytes) -> None:
    """A new server.pem; the key stays, and is made anew where somebody has deleted it."""
    server = folder / "server"
    if not (server / "server.key").is_file():
        put(server / "server.key", certificates.new_key(), SECRET)
    put(server / "server.pem", certificates.server_certificate(authority, (server / "server.key").read_bytes(), plan.address))


def _trust(folder: Path, *authorities: bytes) -> None:
    """A ca.crt with these, for the server and for the hosts whose folders are here."""
    for machine in (folder / "server", *sorted((folder / "hosts").glob("[!.]*"))):
        put(machine / "ca.crt", b"".join(map(certificates.certificates, authorities)))


def _to_the_server(folder: Path) -> str:
    return f"when no run is at work, carry {folder}/server/ to the server; {INSTALL}"
