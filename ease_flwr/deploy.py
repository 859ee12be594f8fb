"""What a federation of real hosts needs, written into a folder: certificates, keys, units, and the commands in their order.

`init` writes it, `demo` starts all of it on this machine and shows that the same adapters come out as in a simulation. What
each file is for is in docs/deploy.md.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from string import Template
from typing import Any

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ease_flwr.core import config
from ease_flwr.core.config import NAME, ConfigError
from ease_flwr.core.paths import write_text

LOOPBACK = ("localhost", "127.0.0.1")
CONNECTION = "ease"
"""What the flwr CLI calls the federation."""
DAYS = 825
"""How long certificates are good for."""

SUPERLINK = """\
[Unit]
Description=Flower SuperLink of an ease_flwr federation
After=network-online.target
Wants=network-online.target

[Service]
User=$user
WorkingDirectory=$folder/server
Environment=FLWR_HOME=$folder/server/flwr EASE_FLWR_HOME=$folder/server/runs FLWR_TELEMETRY_ENABLED=0
Environment=FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
ExecStart=$bin/$command
Restart=always
RestartSec=30

[Install]
WantedBy=multi-user.target
"""

SUPERNODE = (
    SUPERLINK.replace("SuperLink", "SuperNode").replace("$folder/server", "$folder").replace(" EASE_FLWR_HOME=$folder/runs", "")
)

FIREWALL = """\
# Firewall

One port of the server, $port/tcp, carries three interfaces: Control (`flwr run`, `flwr stop`, `flwr supernode register`), Fleet
(SuperNodes) and Runtime. A rule by port cannot tell them apart, and Control asks nobody who they are. So

- let only the addresses of the hosts ($hosts) reach $port/tcp, and keep it off the public internet (a VPN, or an allow-list);
- submit runs on the server itself, or through `ssh -L $port:127.0.0.1:$port SERVER`;
- hosts open no port to anybody: SuperNodes call the server. Each has a port of its own on 127.0.0.1 for its client processes.

For example with nftables on the server:

    nft add rule inet filter input tcp dport $port ip saddr != { HOST_ADDRESSES } drop
"""

COMPOSE = """\
# An alternative to the units, for hosts with Docker: `docker compose --profile server up -d`, and on a host `--profile HOST`.
# The image must hold this checkout, installed: `pip install -e . -c constraints.txt`, with its programs on the PATH.
services:
  superlink:
    profiles: [server]
    image: $${EASE_FLWR_IMAGE:-ease-flwr:latest}
    command: [$superlink]
    working_dir: /federation/server
    environment: {FLWR_HOME: /federation/server/flwr, EASE_FLWR_HOME: /federation/server/runs, FLWR_TELEMETRY_ENABLED: "0"}
    volumes: ["./server:/federation/server"]
    ports: ["$port:$port"]
    restart: always
$nodes"""

COMPOSE_NODE = """\
  $host:
    profiles: [$host]
    image: $${EASE_FLWR_IMAGE:-ease-flwr:latest}
    command: [$command]
    working_dir: /federation
    environment: {FLWR_HOME: /federation/flwr, FLWR_TELEMETRY_ENABLED: "0"}
    volumes: ["./hosts/$host:/federation", "$${DATA_ROOT:-./data}:/data:ro"]
    restart: always
"""


def init(
    folder: Path, hosts: Sequence[str], address: str, port: int = 9092, insecure: bool = False, user: str = "ease"
) -> None:
    """Write the folder of a federation. Raises ConfigError; nothing is overwritten.

    address: name or IP of the server as hosts reach it.  insecure: without TLS and keys, on loopback only.
    """
    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: keys are never overwritten, choose another folder")
    if wrong := [h for h in hosts if not NAME.fullmatch(h)]:
        raise ConfigError(f"--hosts: {wrong[0]!r} cannot name a folder: letters, digits, . _ - and no other, 64 at most")
    if len(set(hosts)) != len(hosts) or len(hosts) < 2:
        raise ConfigError(f"--hosts {','.join(hosts)}: two different names at least")
    if not re.fullmatch(r"[A-Za-z0-9.:-]+", address):
        raise ConfigError(f"--address {address!r}: expected the name or IP address of the server")
    if insecure and address not in LOOPBACK:
        raise ConfigError(f"--insecure is for {' and '.join(LOOPBACK)} only: {address} is reached over a network")
    (folder / "server").mkdir(parents=True)
    if not insecure:
        certificates(folder, address)
    for host in hosts:
        home = folder / "hosts" / host
        home.mkdir(parents=True)
        if not insecure:
            node_key(home / "node.key")
            write_text(home / "ca.crt", (folder / "ca" / "ca.crt").read_text())
        node = unquoted(supernode(home, host, f"{address}:{port}", 9094, insecure, data_root="/data"))
        unit = Template(SUPERNODE).substitute(user=user, folder=f"/opt/ease/{host}", bin=BIN, command=node)
        write_text(home / "ease-supernode.service", unit.replace(str(home), f"/opt/ease/{host}"))
    link = " ".join(superlink(folder / "server", "0.0.0.0" if not insecure else "127.0.0.1", port, insecure))
    unit = Template(SUPERLINK).substitute(user=user, folder="/opt/ease", bin=BIN, command=link)
    write_text(folder / "server" / "ease-superlink.service", unit.replace(str(folder), "/opt/ease"))
    write_text(folder / "server" / "config.toml", connection(folder, address, port, insecure))
    registers = [f"flwr supernode register hosts/{h}/node.key.pub {CONNECTION} --name {h}" for h in hosts if not insecure]
    script = [
        "#!/bin/sh",
        "# Once, on the server, while the SuperLink runs: let these hosts take part.",
        "set -eu",
        'cd "$(dirname "$0")"',
    ]
    script += ['export FLWR_HOME="$PWD/server/flwr"', 'mkdir -p "$FLWR_HOME"', 'cp server/config.toml "$FLWR_HOME/config.toml"']
    write_text(folder / "register.sh", "\n".join([*script, *registers]) + "\n")
    (folder / "register.sh").chmod(0o755)
    write_text(folder / "FIREWALL.md", Template(FIREWALL).substitute(port=port, hosts=", ".join(hosts)))
    write_text(folder / "compose.yaml", compose(folder, hosts, address, port, insecure))


BIN = "/opt/ease/venv/bin"


def superlink(server: Path, host: str, port: int, insecure: bool) -> list[str]:
    """The command of the SuperLink, run in its folder."""
    safe = ["--ssl-ca-certfile", str(server / "ca.crt"), "--ssl-certfile", str(server / "server.pem")]
    safe += ["--ssl-keyfile", str(server / "server.key"), "--enable-supernode-auth"]
    return [
        *("flower-superlink", "--host", host, "--port", str(port), *(["--insecure"] if insecure else safe)),
        *("--database", str(server / "state.db"), "--log-file", str(server / "superlink.log")),
        "--disable-runtime-dependency-installation",
    ]


def supernode(home: Path, host: str, server: str, port: int, insecure: bool, data_root: str = "", cache: str = "") -> list[str]:
    """The command of a host's SuperNode. port: its own, on 127.0.0.1."""
    safe = ["--root-certificates", str(home / "ca.crt"), "--auth-supernode-private-key", str(home / "node.key")]
    told = {"client-name": host, "data-root": data_root, "cache": cache}
    node = " ".join(f"{k}={json.dumps(v)}" for k, v in told.items() if v)
    return [
        *("flower-supernode", *(["--insecure"] if insecure else safe), "--superlink", server),
        *("--port", str(port), "--node-config", node),
    ]


def unquoted(command: Sequence[str]) -> str:
    """A command as a line of a unit."""
    return " ".join(f"'{part}'" if " " in part or '"' in part else part for part in command)


def connection(folder: Path, address: str, port: int, insecure: bool) -> str:
    """config.toml of the flwr CLI."""
    safe = "insecure = true" if insecure else f'root-certificates = "{folder}/ca/ca.crt"'
    return f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\naddress = "{address}:{port}"\n{safe}\n'


def compose(folder: Path, hosts: Sequence[str], address: str, port: int, insecure: bool) -> str:
    """A Docker Compose file that does what the units do."""

    def listed(command: Sequence[str], at: Path, there: str) -> str:
        return ", ".join(json.dumps(part.replace(str(at), there)) for part in command)

    nodes = ""
    for host in hosts:
        home = folder / "hosts" / host
        command = supernode(home, host, f"{address}:{port}", 9094, insecure, data_root="/data")
        nodes += Template(COMPOSE_NODE).substitute(host=host, command=listed(command, home, "/federation"))
    link = listed(superlink(folder / "server", "0.0.0.0", port, insecure), folder, "/federation")
    return Template(COMPOSE).substitute(superlink=link, port=port, nodes=nodes)


# ---- certificates and keys ------------------------------------------------------------------------------------------------


def certificates(folder: Path, address: str) -> None:
    """A certificate authority in ca/ and a certificate of the server, for its address and loopback, in server/."""
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    now = datetime.datetime.now(datetime.UTC)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ease_flwr federation")])
    names = [_general(n) for n in dict.fromkeys([address, *LOOPBACK])]

    def build(subject: x509.Name, key: ec.EllipticCurvePrivateKey, is_authority: bool) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(minutes=5))
        builder = builder.not_valid_after(now + datetime.timedelta(days=DAYS))
        constraint = x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None)
        usage = x509.KeyUsage(not is_authority, False, False, False, False, is_authority, is_authority, False, False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
        builder = builder.add_extension(constraint, True).add_extension(usage, True).add_extension(identifier, False)
        return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)

    root = build(issuer, authority, True).sign(authority, hashes.SHA384())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    leaf = build(subject, server, False).add_extension(x509.SubjectAlternativeName(names), False)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    (folder / "ca").mkdir()
    for file, key in ((folder / "ca" / "ca.key", authority), (folder / "server" / "server.key", server)):
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _secret(file, pem)
    for file, certificate in (
        (folder / "ca" / "ca.crt", root),
        (folder / "server" / "ca.crt", root),
        (folder / "server" / "server.pem", leaf.sign(authority, hashes.SHA384())),
    ):
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def node_key(file: Path) -> None:
    """A key by which a SuperNode shows who it is, in OpenSSH format, and its public half beside it."""
    key = ec.generate_private_key(ec.SECP384R1())
    openssh = serialization.PrivateFormat.OpenSSH
    _secret(file, key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption()))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    file.with_name(file.name + ".pub").write_bytes(public + b"\n")


def _secret(file: Path, content: bytes) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
        f.write(content)


# ---- a federation on this machine -----------------------------------------------------------------------------------------


class Federation:
    """SuperLink and SuperNodes of a folder of `init`, as processes of this machine, for as long as the `with` block."""

    def __init__(self, folder: Path, hosts: Sequence[str], port: int, say: Any = print) -> None:
        self.folder, self.hosts, self.port, self.say = folder, hosts, port, say
        self.insecure = not (folder / "ca").is_dir()
        bin = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([bin, os.environ.get("PATH", "")]),
            "FLWR_HOME": str(folder / "server" / "flwr"),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.known: set[psutil.Process] = set()

    def __enter__(self) -> Federation:
        try:
            server = self.folder / "server"
            self.link = self._start("superlink", superlink(server, "127.0.0.1", self.port, self.insecure), server, {})
            limit = time.monotonic() + 60
            while not listens(self.port):
                if self.link.poll() is not None or time.monotonic() > limit:
                    raise RuntimeError(f"the SuperLink did not start: see {server}/superlink.out")
                time.sleep(0.2)
            self.say(f"SuperLink on 127.0.0.1:{self.port}{'' if self.insecure else ', TLS and node authentication'}")
            done = subprocess.run(
                ["sh", str(self.folder / "register.sh")], env=self.environment, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"hosts could not be registered: {' '.join((done.stdout + done.stderr).split())[:300]}")
            for host in self.hosts:
                self.start_node(host)
                self.say(f"SuperNode {host}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def start_node(self, host: str) -> None:
        """Start the SuperNode of a host."""
        home = self.folder / "hosts" / host
        command = supernode(home, host, f"127.0.0.1:{self.port}", free_port(), self.insecure)
        self.nodes[host] = self._start("supernode", command, home, {"FLWR_HOME": str(home / "flwr")})

    def _start(self, name: str, command: list[str], folder: Path, changes: dict[str, str]) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.out").open("ab") as out:
            return subprocess.Popen(
                command, cwd=folder, env={**self.environment, **changes}, stdout=out, stderr=out, start_new_session=True
            )

    def family(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """A process and all it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def __exit__(self, *_: object) -> None:
        started = [*self.nodes.values(), *([self.link] if hasattr(self, "link") else [])]
        for end in (psutil.Process.terminate, psutil.Process.kill):
            self.known |= {p for process in started for p in self.family(process)}
            for process in self.known:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
            psutil.wait_procs(list(self.known), timeout=10)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)


def listens(port: int) -> bool:
    """Whether somebody answers on this port of loopback."""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


DEMO = {
    **{"data.clients": 3, "data.exclusive": 4, "data.shared": 3, "data.holders": 2, "data.strangers": 6},
    **{"data.exclusive_pairs": 24, "data.shared_pairs": 16, "data.scenes": 32, "data.test_repeats": 1, "data.test_scenes": 60},
    **{"data.holdout_repeats": 1, "learn.rounds": 6, "learn.epochs": 3, "learn.batch": 48, "learn.average": 2},
    **{"hold.rounds": 2, "strategy.rounds": 2, "evaluation.every": 0, "evaluation.reference": "none", "audit.level": "none"},
}
"""The built-in world small enough for processes that start anew for every message."""


@contextmanager
def federation(folder: Path, hosts: Sequence[str], say: Any = print) -> Iterator[Federation]:
    """A new federation on loopback."""
    port = free_port()
    init(folder, hosts, "127.0.0.1", port)
    with Federation(folder, hosts, port, say) as running:
        yield running


def demo(folder: Path, say: Any = print) -> int:
    """The small experiment on three SuperNodes with TLS and authentication, then in a simulation: the same adapters?

    Returns the exit status; what was written stays in `folder`.
    """
    from ease_flwr import launcher

    hosts = [f"client-{k}" for k in range(3)]
    settings = " ".join(f"{k}={v}" for k, v in DEMO.items())
    run = {"experiment": "personas", "strategy": "ease", "fresh": True, "seed": 0, "set": settings}
    experiment = config.load("personas", dict(DEMO))
    started = time.monotonic()
    with ExitStack() as stack:
        running = stack.enter_context(federation(folder / "federation", hosts, say))
        link = launcher.Link(CONNECTION, running.environment)
        where = folder / "deployed"
        if link.follow(link.submit({**run, "run-dir": str(where)}), where):
            return 1
        say(f"deployed: {time.monotonic() - started:.0f} s")
        say(exchange_seconds(where))
    if launcher.submit({**run, "run-dir": str(folder / "simulated")}, experiment, folder / "simulated", launcher.Where()):
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
