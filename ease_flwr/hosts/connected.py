"""Who is connected to a SuperLink, by the names that their keys were registered under, and how long its certificates are good.

The flwr CLI leaves names and keys out of its JSON, so its client is asked directly.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ease_flwr.config import ConfigError, Experiment, among
from ease_flwr.hosts import surroundings

SERVED = ("server.pem", "ca.crt")
"""Certificates in the server's folder: its own, and of the authority that signed it."""


@dataclass(frozen=True)
class Node:
    """A SuperNode as the SuperLink knows it."""

    name: str
    """Under which its key was registered; "" for a node without a key."""
    node: str
    """Flower's id."""
    key: str
    """sha256 of its public key, "" for a node without one."""
    online: bool
    since: str
    """UTC; when it came, or when it was last there; "" where it never was."""


@dataclass(frozen=True)
class Certificate:
    """A certificate of the federation."""

    file: str
    until: str
    """UTC; where a file has several, of the one that expires first."""
    days: int
    """Whole days that are left; negative where it has expired."""


@contextlib.contextmanager
def _asked(superlink: str) -> Iterator[None]:
    """flwr's own words for what goes wrong, in one line; what it prints on the way is left out."""
    import click

    check(superlink)
    with surroundings.past_proxies(), contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        except (click.ClickException, RuntimeError, OSError) as error:  # of a home folder that is not there, or is not ours
            said = " ".join((error.message if isinstance(error, click.ClickException) else str(error)).split())
            raise ConfigError(f"--superlink {superlink}: {said}") from None


def check(superlink: str) -> None:
    """Raises ConfigError where the flwr CLI knows no connection of this name."""
    import click
    from flwr.cli.flower_config import read_flower_config

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where it has no file it writes one, and says so
            said, file = read_flower_config()
    except (click.ClickException, RuntimeError, OSError) as error:
        raise ConfigError(f"--superlink {superlink}: {getattr(error, 'message', error)}") from None
    known = sorted(name for name, about in said.get("superlink", {}).items() if isinstance(about, dict))
    if superlink not in known:
        raise ConfigError(f"--superlink {superlink}: no connection of that name in {file}: {among(superlink, known)}")


def check_place(experiment: Experiment, superlink: str) -> None:
    """Raises ConfigError where a run of hosts would be simulated (no superlink), or names hosts that it does not know."""
    if experiment.data.kind != "folder":
        if superlink:
            check(superlink)
        return
    if not superlink:
        raise ConfigError("its clients are hosts with data of their own: say where they are reached, --superlink NAME")
    known = {node.name for node in nodes(superlink)} - {""}
    if strange := sorted(set(experiment.data.client_names) - known) if known else []:
        raise ConfigError(
            f"no host is registered as {', '.join(strange)}; registered are {', '.join(sorted(known))}: mend data.names, or "
            "register it (`ease deploy register`)"
        )


def nodes(superlink: str) -> list[Node]:
    """The SuperNodes of a connection of the flwr CLI, by name. Raises ConfigError where the SuperLink does not answer."""
    from flwr.cli.flower_config import read_superlink_connection
    from flwr.cli.utils import flwr_cli_exc_handler, init_http_client_from_connection
    from flwr.proto.control_pb2 import ListNodesRequest

    with _asked(superlink), flwr_cli_exc_handler():
        client = init_http_client_from_connection(read_superlink_connection(superlink))
        try:
            found = client.ListNodes(ListNodesRequest()).nodes_info
        finally:
            client.close()
    there = [n for n in found if n.status != "unregistered"]
    return sorted(
        (
            Node(
                n.name,
                str(n.node_id),
                hashlib.sha256(n.public_key).hexdigest() if n.public_key else "",
                n.status == "online",
                _utc(n.last_activated_at if n.status == "online" else n.last_deactivated_at),
            )
            for n in there
        ),
        key=lambda n: (n.name, n.node),
    )


def certificates(superlink: str, now: datetime.datetime | None = None) -> list[Certificate]:
    """Of the server, beside the root certificate of a connection, or in the folder server/ beside that; none without TLS.

    Raises ConfigError where there is no such connection, or a file is no certificate.
    """
    from flwr.cli.flower_config import read_superlink_connection

    with _asked(superlink):
        root = read_superlink_connection(superlink).root_certificates
    if not root:
        return []
    beside = Path(root).parent
    folders = [beside, *(f for f in (beside.parent / "server",) if f != beside)]
    files = [f for name in SERVED if (f := next((d / name for d in folders if (d / name).is_file()), None))]
    return list(_read(files, now or datetime.datetime.now(datetime.UTC)))


def _read(files: Iterable[Path], now: datetime.datetime) -> Iterator[Certificate]:
    from cryptography import x509

    for file in files:
        try:
            until = min(c.not_valid_after_utc for c in x509.load_pem_x509_certificates(file.read_bytes()))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: not a certificate ({error}): restore it") from None
        yield Certificate(str(file), until.strftime("%Y-%m-%dT%H:%M:%SZ"), (until - now).days)


def _utc(time: str) -> str:
    """Flower's time, as ours are written."""
    if not time:
        return ""
    return datetime.datetime.fromisoformat(time).astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
