"""Small files of settings: the operator's federation.json, a host's node.toml, the server's link.toml."""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from ease_flwr.config import NAME, ConfigError, Section, meant, validate
from ease_flwr.hosts.certificates import LOOPBACK
from ease_flwr.hosts.writing import put

FEDERATION, NODE, LINK = "federation.json", "node.toml", "link.toml"
DOOR_KEY = "flwr/door.key"
"""In a host's folder: what its SuperNode and hosts/door.py know, and other programs of the machine do not."""
INSIDE = "127.0.0.1"
"""The only address that the SuperLink listens on."""
TAKEN = ("server", "src", "venv")
"""Folders below the prefix that no host can be named like."""


class Deployment(Section):
    """What `ease deploy init` was told, and who has joined since."""

    address: str
    """Name or IP address of the server, as hosts reach it."""
    hosts: tuple[str, ...]
    """Names of the clients' hosts."""
    port: int = Field(9092, ge=1, le=65535)
    """Of the server, for hosts. Below 1024 only in a folder of an earlier version."""
    loopback_port: int = Field(default_factory=lambda known: 9092 if known.get("port") == 9093 else 9093, ge=1024, le=65535)
    """Of the SuperLink on the server's loopback, which nothing but nginx and the operator reaches."""
    user: str = "ease"
    """Account that the units run under."""
    prefix: str = "/opt/ease"
    """Folder of the installation on every machine: venv/, and the folder of the server or of the host."""
    insecure: bool = False
    """Without TLS and keys, on loopback only."""
    allow: tuple[str, ...] = ()
    """Addresses, or networks, from which hosts may reach the server."""

    @property
    def endpoint(self) -> str:
        """address:port, for hosts."""
        return endpoint(self.address, self.port)


def checked(plan: Deployment) -> Deployment:
    """The same. Raises ConfigError where it cannot be."""
    for host in plan.hosts:
        if not NAME.fullmatch(host) or host in TAKEN:
            why = f"there is a folder {host} of ours" if host in TAKEN else "letters, digits, . _ - and no other, 64 at most"
            raise ConfigError(f"--hosts: {host!r} cannot name a folder: {why}")
    if len(set(plan.hosts)) != len(plan.hosts) or not plan.hosts:
        raise ConfigError(f"--hosts {','.join(plan.hosts)}: one name at least, and none twice")
    if not re.fullmatch(r"[A-Za-z0-9.:-]+", plan.address):
        raise ConfigError(f"--address {plan.address!r}: expected the name or IP address of the server")
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", plan.prefix):
        raise ConfigError(f"--prefix {plan.prefix!r}: expected an absolute path of letters, digits, . _ - and /")
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", plan.user):
        raise ConfigError(f"--user {plan.user!r}: expected the name of an account")
    if plan.port == plan.loopback_port:
        raise ConfigError(f"--port {plan.port}, --loopback-port: the same, but nginx and the SuperLink need one each")
    if plan.insecure and plan.address not in LOOPBACK:
        raise ConfigError(f"--insecure is for {' and '.join(LOOPBACK)} only: {plan.address} is reached over a network")
    for network in plan.allow:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise ConfigError(f"--allow: {network!r} is no IP address and no network such as 192.0.2.0/24") from None
    return plan


def opened(folder: Path) -> Deployment:
    """federation.json of a folder that `ease deploy init` has written. Raises ConfigError."""
    file = folder / FEDERATION
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no {FEDERATION} in {folder}: `ease deploy init` writes such a folder") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from None
    return checked(validate(Deployment, values, str(file)))


def close(folder: Path, plan: Deployment) -> None:
    """Write federation.json."""
    put(folder / FEDERATION, json.dumps(plan.model_dump(mode="json"), indent=1) + "\n")


class Host(Section):
    """node.toml: what a host decides by itself."""

    client_name: str
    """Name that the host was registered under."""
    server: str
    """Where the SuperLink listens, host:port."""
    port: int = Field(9094, ge=1, le=65535)
    """Of the SuperNode, on loopback."""
    data_root: str = ""
    """Folder of the data."""
    device: str = ""
    """cpu or cuda; "" is what the experiment says."""
    base_model: str = ""
    """File of the base model, if it lies elsewhere than the experiment says."""
    cache: str = ""
    """Folder for decoded pictures and activations; "" is none."""
    insecure: bool = False
    """Without TLS and a key, on loopback only."""

    @field_validator("client_name", "data_root", "device", "base_model", "cache")
    @classmethod
    def _can_be_passed_on(cls, value: str, info: ValidationInfo) -> str:
        if re.search(r'["\\\n]', value):
            raise ValueError("quotes, backslashes and line breaks cannot be passed on to Flower")
        if info.field_name == "client_name" and not NAME.fullmatch(value):
            raise ValueError("expected letters, digits, . _ - and no other, 64 at most")
        return value

    @field_validator("server")
    @classmethod
    def _is_an_endpoint(cls, value: str) -> str:
        split(value)
        return value


class Server(Section):
    """link.toml: where the server listens."""

    port: int = Field(9093, ge=1, le=65535)
    """Of the SuperLink, on 127.0.0.1: for nginx, for `flwr` and for the SuperLink's own programs."""
    proxy: int = Field(9092, ge=1, le=65535)
    """Of nginx, for hosts."""
    insecure: bool = False
    """Without TLS and keys: hosts of loopback call the SuperLink itself."""

    @property
    def here(self) -> str:
        """host:port of the SuperLink for programs on the server."""
        return endpoint(INSIDE, self.port)

    @property
    def door(self) -> str:
        """host:port of nginx for programs on the server."""
        return endpoint(INSIDE, self.proxy)


S = TypeVar("S", bound=Section)


def read(model: type[S], file: Path) -> S:
    """The settings in a TOML file, whose keys have hyphens. Raises ConfigError: one line with every mistake."""
    try:
        text = file.read_text(encoding="utf-8")
        found: dict[str, Any] = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    known = {name.replace("_", "-"): name for name in model.model_fields}
    wrong = [key for key in found if key not in known]
    mistakes = [f"line {_line(text, key)}: unknown key {key} (known: {', '.join(known)}){meant(key, known)}" for key in wrong]
    mistakes += [
        f"no {k}: it must be given" for k, n in known.items() if model.model_fields[n].is_required() and k not in found
    ]
    if mistakes:
        raise ConfigError(f"{file}: {'; '.join(mistakes)}")
    return validate(model, {known[key]: value for key, value in found.items()}, str(file))


def _line(text: str, key: str) -> int:
    """Where a key of the top of a TOML text stands, counted from 1."""
    begins = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[]=.]""")
    return next((n for n, line in enumerate(text.splitlines(), 1) if begins.match(line)), 1)


def endpoint(host: str, port: int) -> str:
    """host:port; an IPv6 address goes in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(server: str) -> tuple[str, int]:
    """host and port of host:port. Raises ValueError."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})", server)
    if not found or not 0 < int(found[3]) < 65536:
        raise ValueError("expected host:port, for example fl.example.org:9092")
    return found[1] or found[2], int(found[3])
