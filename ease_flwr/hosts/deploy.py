"""What a federation of real hosts needs, written into a folder: certificates, keys, units, and the commands in their order.

The files are in templates/; what each is for is in docs/deploy.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from ease_flwr.config import NAME, ConfigError
from ease_flwr.hosts.certificates import LOOPBACK, certify, node_key
from ease_flwr.store.files import new_folder, write_text

TEMPLATES = Path(__file__).with_name("templates")
"""Some end in .md: an app on Flower Hub has no files that end in .service or .sh."""
CONNECTION = "ease"
"""What the flwr CLI calls the federation."""
THERE = Path("/opt/ease")
"""Where the units expect a host's folder, and the programs in venv/bin."""
INSIDE = Path("/federation")
"""The same in a container."""
NODE_PORT = 9094
"""Of each SuperNode, on loopback."""


def init(
    folder: Path, hosts: Sequence[str], address: str, port: int = 9092, insecure: bool = False, user: str = "ease"
) -> None:
    """Write the folder of a federation. Raises ConfigError; nothing is overwritten.

    address: name or IP of the server as hosts reach it.  insecure: without TLS and keys, on loopback only.
    """
    folder = folder.absolute()
    if wrong := [h for h in hosts if not NAME.fullmatch(h)]:
        raise ConfigError(f"--hosts: {wrong[0]!r} cannot name a folder: letters, digits, . _ - and no other, 64 at most")
    if len(set(hosts)) != len(hosts) or len(hosts) < 2:
        raise ConfigError(f"--hosts {','.join(hosts)}: two different names at least")
    if not re.fullmatch(r"[A-Za-z0-9.:-]+", address):
        raise ConfigError(f"--address {address!r}: expected the name or IP address of the server")
    if insecure and address not in LOOPBACK:
        raise ConfigError(f"--insecure is for {' and '.join(LOOPBACK)} only: {address} is reached over a network")
    new_folder(folder, "keys are never overwritten, choose another folder")
    server, names = folder / "server", {"user": user, "bin": str(THERE / "venv" / "bin")}
    server.mkdir(parents=True)
    if not insecure:
        certify(folder, address)
    for host in hosts:
        home, there = folder / "hosts" / host, THERE / host
        home.mkdir(parents=True)
        if not insecure:
            node_key(home / "node.key")
            write_text(home / "ca.crt", (folder / "ca" / "ca.crt").read_text())
        node = unquoted(supernode(there, host, f"{address}:{port}", NODE_PORT, insecure, data_root="/data"))
        write_text(home / "ease-supernode.service", fill("ease-supernode.service.md", **names, folder=there, command=node))
    link = " ".join(superlink(THERE / "server", "127.0.0.1" if insecure else "0.0.0.0", port, insecure))
    write_text(server / "ease-superlink.service", fill("ease-superlink.service.md", **names, folder=THERE, command=link))
    trust = "insecure = true" if insecure else f'root-certificates = "{folder}/ca/ca.crt"'
    write_text(server / "config.toml", fill("config.toml", name=CONNECTION, address=address, port=port, trust=trust))
    registers = [f"flwr supernode register hosts/{h}/node.key.pub {CONNECTION} --name {h}\n" for h in hosts if not insecure]
    write_text(folder / "register.sh", fill("register.sh.md") + "".join(registers))
    (folder / "register.sh").chmod(0o755)
    write_text(folder / "FIREWALL.md", fill("FIREWALL.md", port=port, hosts=", ".join(hosts)))
    write_text(folder / "compose.yaml", compose(hosts, address, port, insecure))


def fill(template: str, **values: object) -> str:
    """The text of a file in templates/, with its names filled in."""
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def superlink(server: Path, host: str, port: int, insecure: bool) -> list[str]:
    """The command of the SuperLink, run in its folder."""
    safe = ["--ssl-ca-certfile", str(server / "ca.crt"), "--ssl-certfile", str(server / "server.pem")]
    safe += ["--ssl-keyfile", str(server / "server.key"), "--enable-supernode-auth"]
    return [
        *("flower-superlink", "--host", host, "--port", str(port), *(["--insecure"] if insecure else safe)),
        *("--database", str(server / "state.db"), "--log-file", str(server / "superlink.log")),
        "--disable-runtime-dependency-installation",
    ]


def supernode(home: Path, host: str, server: str, port: int, insecure: bool, data_root: str = "") -> list[str]:
    """The command of a host's SuperNode. port: its own, on 127.0.0.1."""
    safe = ["--root-certificates", str(home / "ca.crt"), "--auth-supernode-private-key", str(home / "node.key")]
    node = f"client-name={json.dumps(host)}" + (f" data-root={json.dumps(data_root)}" if data_root else "")
    return [
        *("flower-supernode", *(["--insecure"] if insecure else safe), "--superlink", server),
        *("--port", str(port), "--node-config", node),
    ]


def unquoted(command: Sequence[str]) -> str:
    """A command as a line of a unit."""
    return " ".join(f"'{part}'" if " " in part or '"' in part else part for part in command)


def compose(hosts: Sequence[str], address: str, port: int, insecure: bool) -> str:
    """A Docker Compose file that does what the units do."""

    def listed(command: Sequence[str]) -> str:
        return ", ".join(map(json.dumps, command))

    text = fill("compose.yaml", superlink=listed(superlink(INSIDE / "server", "0.0.0.0", port, insecure)), port=port)
    for host in hosts:
        command = supernode(INSIDE, host, f"{address}:{port}", NODE_PORT, insecure, data_root="/data")
        text += fill("compose-host.yaml", host=host, command=listed(command))
    return text
