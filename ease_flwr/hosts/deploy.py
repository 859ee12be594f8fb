"""What a federation of real hosts needs, written into a folder: a folder for each machine, and the certificate authority.

server/ and hosts/NAME/ travel, ca/ and retired/ stay. The files are in templates/; what each is for is in docs/deploy.md.
"""

from __future__ import annotations

import ipaddress
import shutil
from pathlib import Path
from string import Template

from ease_flwr.config import ConfigError, among
from ease_flwr.hosts import app, certificates, pinned
from ease_flwr.hosts.policy import POLICY, defaults
from ease_flwr.hosts.settings import FEDERATION, LINK, NODE, Deployment, Host, Server, checked, close, opened, read
from ease_flwr.hosts.writing import SECRET, give, move, put, remove
from ease_flwr.store.files import new_folder

TEMPLATES = Path(__file__).with_name("templates")
"""Some end in .md: an app on Flower Hub has no files that end in .service, .sh or .nft."""
CONNECTION = "ease"
"""What the flwr CLI calls the federation."""
AUTHORITY = "ca.pem"
"""In ca/: key and certificate of the authority in one file, which changes as a whole."""
INSTALL = "there, as root: sh install.sh"
UNITS = {"link": "ease-superlink.service", "node": "ease-supernode.service", "proxy": "ease-proxy.service"}
NGINX = "/usr/sbin/nginx"
PROXY = "nginx.conf"


def init(folder: Path, plan: Deployment) -> str:
    """Write the folder of a federation, as a whole or not at all; returns what is to be done with it.

    Raises ConfigError; nothing is overwritten.
    """
    checked(plan)
    folder = folder.absolute()
    if (folder / FEDERATION).is_file():
        raise ConfigError(f"{folder} has a federation already: `ease deploy add-host {folder} NAME` adds a host to it")
    new_folder(folder, "keys are never overwritten, choose another folder")
    draft = folder.with_name(f".{folder.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        _write_server(draft, plan)
        for host in plan.hosts:
            _write_host(draft, plan, host)
        close(draft, plan)
        move(draft, folder)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}: choose another folder") from None
    return steps(
        [
            f"carry {folder}/server/ to the server; {INSTALL}",
            *([] if plan.insecure else [_registering(plan)]),
            f"carry {folder}/hosts/NAME/ to each host, edit {NODE} and {POLICY} in it; {INSTALL}",
            f"on each machine: ease deploy health {plan.prefix}/server, or {plan.prefix}/NAME",
            *([] if plan.insecure else [f"keep {folder}/ca/ offline"]),
        ]
    )


def add_host(folder: Path, name: str) -> str:
    """The folder of one more host; returns what is to be done with it. Raises ConfigError."""
    plan = opened(folder)
    if name in plan.hosts:
        raise ConfigError(f"{name} is a host of {folder} already: `ease deploy replace-key` gives it a new key")
    plan = checked(plan.model_copy(update={"hosts": (*plan.hosts, name)}))
    _write_host(folder, plan, name)
    close(folder, plan)
    first = []
    if not plan.insecure:
        first = [f"carry {folder}/server/keys/{name}.pub to {plan.prefix}/server/keys/ on the server", _registering(plan)]
    return steps(
        [
            *first,
            f"let its address in: {plan.prefix}/server/ease.nft on the server, and nft -f of that file",
            f"carry {folder}/hosts/{name}/ to the new host, edit {NODE} in it; {INSTALL}",
            f"on the server: ease join RUN {name} --superlink {CONNECTION}",
        ]
    )


def replace_key(folder: Path, name: str) -> str:
    """A new key for a host whose key was lost or seen by others; returns what is to be done. Raises ConfigError."""
    plan, home = secure(folder), folder / "hosts" / name
    if name not in plan.hosts:
        raise ConfigError(f"no host {name} in {folder}: {among(name, plan.hosts)}")
    retire(folder, name)
    if home.is_dir():
        put(home / "node.key", certificates.node_key(), SECRET)
    _write_host(folder, plan, name)
    return steps(
        [
            f"carry {folder}/server/keys/ with retired/ to {plan.prefix}/server/keys/ on the server",
            _registering(plan),
            f"carry {home}/ to the host; {INSTALL}",
        ]
    )


def remove_host(folder: Path, name: str) -> str:
    """Take a host out; returns what is to be done. Raises ConfigError."""
    plan, home = opened(folder), folder / "hosts" / name
    if name not in plan.hosts:
        raise ConfigError(f"no host {name} in {folder}: {among(name, plan.hosts)}")
    if len(plan.hosts) == 1:
        raise ConfigError(f"{name} is the only host of {folder}: add another first")
    retired = retire(folder, name)
    remove(folder / "server" / "keys" / f"{name}.pub")
    if home.is_dir():
        to = folder / "retired" / (retired or name)
        to.parent.mkdir(mode=0o700, exist_ok=True)
        if to.is_dir():  # of a host of this name that was removed before, and that had no key
            shutil.rmtree(to)
        move(home, to)
    close(folder, plan.model_copy(update={"hosts": tuple(h for h in plan.hosts if h != name)}))
    there, ended = f"{plan.prefix}/server", [f"on the host, as root: systemctl disable --now {UNITS['node']}"]
    if not plan.insecure:
        ended += [f"carry {folder}/server/keys/retired/ to {there}/keys/retired/ on the server", _registering(plan)]
    ended += [f"take its address out of {there}/ease.nft on the server", f"on the server: ease forget RUN --client {name}"]
    return steps(ended)


def retire(folder: Path, name: str) -> str:
    """Keep aside the key of a host, by which `ease deploy register` unregisters it; the name that it is kept under, if any."""
    public = folder / "server" / "keys" / f"{name}.pub"
    key = folder / "hosts" / name / "node.key"
    if key.is_file() and certificates.public_half(key.read_bytes()) != (public.read_bytes() if public.is_file() else b""):
        put(public, certificates.public_half(key.read_bytes()))  # a replacement that was killed before it wrote this
    if not public.is_file():
        return ""
    kept = f"{name}-{certificates.fingerprint(public.read_bytes())[:12]}"
    put(folder / "server" / "keys" / "retired" / f"{kept}.pub", public.read_bytes())
    if key.is_file():
        (folder / "retired").mkdir(mode=0o700, exist_ok=True)
        put(folder / "retired" / f"{kept}.key", key.read_bytes(), SECRET)
    return kept


def fill(template: str, **values: object) -> str:
    """The text of a file in templates/, with its names filled in."""
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def proxy(server: Path) -> list[str]:
    """The command of nginx before the SuperLink. Names in its configuration are of the server's folder."""
    return [NGINX, "-p", str(server), "-c", PROXY]


def connection(server: Path, settings: Server) -> str:
    """config.toml of the flwr CLI, for who submits runs on the server."""
    trust = "insecure = true" if settings.insecure else f'root-certificates = "{server}/ca.crt"'
    return fill("config.toml", name=CONNECTION, address=settings.here, trust=trust)


def policy(home: Path) -> Path:
    """policy.toml of a host. Where there is none, as in an earlier version, one is written: what is installed here may run, and
    all that it can do. Raises ConfigError where this is no host's folder."""
    read(Host, home / NODE)
    if not (home / POLICY).is_file():
        _write_policy(home)
        give(home / POLICY, home)
    return home / POLICY


def _write_policy(home: Path) -> None:
    put(home / POLICY, fill("policy.toml", **defaults([pinned.keep(home, app.packed()).stem])))


def _write_server(folder: Path, plan: Deployment) -> None:
    server, there = folder / "server", Path(plan.prefix, "server")
    (server / "flwr").mkdir(parents=True)
    settings = Server(port=plan.port if plan.insecure else plan.loopback_port, proxy=plan.port, insecure=plan.insecure)
    ports = {"port": plan.port, "loopback_port": settings.port, "user": plan.user, "folder": there}
    units = {UNITS["link"]: _unit(plan, "server", "Flower SuperLink of an ease_flwr federation", "link")}
    compose = fill("compose-server.yaml")
    if not plan.insecure:
        (folder / "ca").mkdir(mode=0o700)
        (server / "keys" / "retired").mkdir(parents=True)
        authority, key = certificates.new_authority(), certificates.new_key()
        put(folder / "ca" / AUTHORITY, authority, SECRET)
        put(server / "server.key", key, SECRET)
        put(server / "server.pem", certificates.server_certificate(authority, key, plan.address))
        put(server / "ca.crt", certificates.certificates(authority))
        everywhere = f"[::]:{plan.port} ipv6only=off" if ":" in plan.address else f"{plan.port}"
        put(server / PROXY, fill("nginx.conf.md", listen=everywhere, **ports))
        units[UNITS["proxy"]] = _unit(plan, "server", "nginx before the SuperLink of an ease_flwr federation", "proxy")
        compose += fill("compose-proxy.yaml")
    put(server / LINK, fill("link.toml", port=settings.port, proxy=settings.proxy) + _insecure(plan))
    put(server / "flwr" / "config.toml", connection(there, settings))
    put(server / "compose.yaml", compose)
    put(server / "env.sh", fill("env.sh.md", user=plan.user, folder=there, prefix=plan.prefix))
    addresses: dict[int, list[str]] = {4: [], 6: []}
    for network in plan.allow:
        addresses[ipaddress.ip_network(network).version].append(network)
    four, six = (
        f"elements = {{ {', '.join(addresses[v])} }}" if addresses[v] else f"# elements = {{ {example} }}"
        for v, example in ((4, "192.0.2.7, 192.0.2.128/25"), (6, "2001:db8::7"))
    )
    put(server / "ease.nft", fill("ease.nft.md", four=four, six=six, **ports))
    listed = f"now: {', '.join(plan.allow)}" if plan.allow else "there are none yet: nobody but the server itself gets in"
    put(server / "FIREWALL.md", fill("FIREWALL.md", listed=listed, **ports))
    _write_units(server, plan, units)


def _write_host(folder: Path, plan: Deployment, name: str) -> None:
    """The folder of a host, if there is none; and the public half of its key for the server."""
    home, there = folder / "hosts" / name, f"{plan.prefix}/{name}"
    if not home.is_dir():
        draft = folder / "hosts" / f".{name}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        values = {"name": name, "server": plan.endpoint, "data_root": "/data", "folder": there}
        put(draft / NODE, fill("node.toml", **values) + _insecure(plan))
        _write_policy(draft)
        put(draft / "compose.yaml", fill("compose-host.yaml"))
        if not plan.insecure:
            put(draft / "ca.crt", (folder / "server" / "ca.crt").read_bytes())
            put(draft / "node.key", certificates.node_key(), SECRET)
        description = f"Flower SuperNode of {name}, a host of an ease_flwr federation"
        _write_units(draft, plan, {UNITS["node"]: _unit(plan, name, description, "node")}, name)
        move(draft, home)
    if not plan.insecure:
        public = certificates.public_half((home / "node.key").read_bytes())
        put(home / "node.key.pub", public)
        put(folder / "server" / "keys" / f"{name}.pub", public)


def _unit(plan: Deployment, name: str, description: str, verb: str) -> str:
    """The text of a unit of systemd, for the folder of this name on its machine."""
    folder = f"{plan.prefix}/{name}"
    watched = [f"{plan.prefix}/venv/bin/ease", "deploy", verb, folder]
    command = " ".join(proxy(Path(folder)) if verb == "proxy" else watched)
    return fill("ease.service.md", description=description, user=plan.user, folder=folder, command=command)


def _write_units(home: Path, plan: Deployment, units: dict[str, str], name: str = "server") -> None:
    """The units of a machine by their names, and the script that installs them with the folder."""
    for unit, text in units.items():
        put(home / unit, text)
    kept = f"{NODE} {POLICY} compose.yaml" if UNITS["node"] in units else f"{LINK} {PROXY} ease.nft compose.yaml"
    values = {"user": plan.user, "prefix": plan.prefix, "folder": f"{plan.prefix}/{name}", "units": " ".join(units)}
    programs = NGINX if UNITS["proxy"] in units else ""
    put(home / "install.sh", fill("install.sh.md", kept=kept, programs=programs, **values), 0o755)


def _insecure(plan: Deployment) -> str:
    return "insecure = true      # without TLS and keys, on loopback only\n" if plan.insecure else ""


def secure(folder: Path) -> Deployment:
    """federation.json of a federation that has keys and certificates. Raises ConfigError."""
    plan = opened(folder)
    if plan.insecure:
        raise ConfigError(f"{folder} was made with --insecure: it has no keys and no certificates")
    return plan


def _registering(plan: Deployment) -> str:
    return f"on the server, as {plan.user}: ease deploy register {plan.prefix}/server"


def steps(lines: list[str]) -> str:
    """What is to be done, a numbered line each."""
    return "\n".join(f"{k}. {line}" for k, line in enumerate(lines, 1))
