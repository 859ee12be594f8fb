"""`ease deploy`: a federation of real hosts, what it needs and how it is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ease_flwr.cli.shared import here, mistakes

deploy = typer.Typer(no_args_is_help=True, help="A federation of real hosts: what it needs, and a proof on this machine.")

FOLDER = Annotated[Path, typer.Argument(help="Folder that `ease deploy init` has written.")]
NAME = Annotated[str, typer.Argument(help="Name of a host.")]
SERVER = Annotated[Path, typer.Argument(help="Folder of the server, /opt/ease/server for example.")]
HOST = Annotated[Path, typer.Argument(help="Folder of the host, /opt/ease/NAME for example.")]


@deploy.command("init")
def deploy_init(
    folder: Annotated[Path, typer.Argument(help="New folder; it will hold private keys.")],
    hosts: Annotated[str, typer.Option(help="Names of the clients' hosts, with commas.")],
    address: Annotated[str, typer.Option(help="Name or IP address of the server, as the hosts reach it.")],
    port: Annotated[int, typer.Option(help="Of the server, for hosts.", min=1024, max=65535)] = 9092,
    loopback_port: Annotated[int, typer.Option(help="Of the SuperLink, on the server alone.", min=1024, max=65535)] = 9093,
    user: Annotated[str, typer.Option(help="Account that the units run under.")] = "ease",
    prefix: Annotated[str, typer.Option(help="Folder of the installation on every machine.")] = "/opt/ease",
    allow: Annotated[str, typer.Option(help="Addresses of the hosts for the firewall, with commas.")] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS, no keys; on loopback only.")] = False,
) -> None:
    """Write a folder for each machine: certificates, keys, settings, units, an installer; and the certificate authority."""
    with mistakes("deploy init"):
        from ease_flwr.hosts import deploy as deployment
        from ease_flwr.hosts.settings import Deployment

        more = {"port": port, "loopback_port": loopback_port, "user": user, "prefix": prefix, "insecure": insecure}
        said = deployment.init(folder, Deployment(address=address, hosts=_listed(hosts), allow=_listed(allow), **more))
        print(f"written to {folder}; docs/deploy.md says more\n{said}")


@deploy.command("add-host")
def deploy_add_host(folder: FOLDER, name: NAME) -> None:
    """Key, folder and unit of one more host; prints what to carry where."""
    with mistakes("deploy add-host"):
        from ease_flwr.hosts import deploy as deployment

        print(deployment.add_host(folder, name))


@deploy.command("replace-key")
def deploy_replace_key(folder: FOLDER, name: NAME) -> None:
    """A new key for a host whose key was lost, or seen by others; prints what to carry where."""
    with mistakes("deploy replace-key"):
        from ease_flwr.hosts import deploy as deployment

        print(deployment.replace_key(folder, name))


@deploy.command("remove-host")
def deploy_remove_host(folder: FOLDER, name: NAME) -> None:
    """Take a host out of the federation; prints what to carry where. What was learnt from it is forgotten by `ease forget`."""
    with mistakes("deploy remove-host"):
        from ease_flwr.hosts import deploy as deployment

        print(deployment.remove_host(folder, name))


@deploy.command("rotate-ca")
def deploy_rotate_ca(
    folder: FOLDER,
    finish: Annotated[bool, typer.Option("--finish", help="Second step, once every host has the ca.crt of the first.")] = False,
) -> None:
    """A new certificate authority in two steps, so that no host is cut off; each prints what to carry where."""
    with mistakes("deploy rotate-ca"):
        from ease_flwr.hosts import rotation

        print(rotation.finish(folder) if finish else rotation.rotate(folder))


@deploy.command("renew")
def deploy_renew(folder: FOLDER) -> None:
    """A new certificate of the server, from the same authority; prints what to carry where."""
    with mistakes("deploy renew"):
        from ease_flwr.hosts import rotation

        print(rotation.renew(folder))


@deploy.command("register")
def deploy_register(
    server: SERVER,
    superlink: Annotated[str, typer.Option(help="Connection of the flwr CLI.")] = "ease",
) -> None:
    """On the server, while the SuperLink runs: let it know the hosts in keys/, and no host in keys/retired/."""
    with mistakes("deploy register"):
        from ease_flwr.hosts import registry

        registry.register(server, superlink, _say)


@deploy.command("link")
def deploy_link(server: SERVER) -> None:
    """Start the SuperLink and watch over it. It ends with a line that says why; let systemd start it again."""
    from ease_flwr.hosts import watch

    _watch("link", watch.link, server)


@deploy.command("node")
def deploy_node(host: HOST) -> None:
    """Start the SuperNode and watch over it. It ends with a line that says why; let systemd start it again."""
    from ease_flwr.hosts import watch

    _watch("node", watch.node, host)


@deploy.command("health")
def deploy_health(
    folder: Annotated[Path, typer.Argument(help="Folder of the server or of a host.")],
    days: Annotated[int, typer.Option(help="For how many days the server's certificate must be good.", min=0)] = 14,
) -> None:
    """One line, and exit status 0 where processes, server and certificate are as they should be, 1 where not."""
    with mistakes("deploy health"):
        from ease_flwr.hosts import probe

        well, line = probe.health(folder, days)
        print(line)
        raise typer.Exit(0 if well else 1)


@deploy.command("demo")
def deploy_demo(
    run_dir: Annotated[Path | None, typer.Option(help="New folder for keys, logs and runs.", callback=here)] = None,
) -> None:
    """A SuperLink and three SuperNodes with TLS and keys on this machine; the adapters must be those of a simulation."""
    import time

    from ease_flwr.store.files import home, new_folder

    with mistakes("deploy demo"):
        from ease_flwr.hosts.demo import demo

        folder = (run_dir or home() / f"demo-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
        new_folder(folder)
        raise typer.Exit(demo(folder, _say))


def _watch(command: str, watch: Callable[[Path, Callable[[str], object]], str], folder: Path) -> None:
    with mistakes(f"deploy {command}"):
        why = watch(folder, lambda line: _say(f"ease deploy {command}: {line}"))
        print(f"ease deploy {command}: {why}", file=sys.stderr)
        raise typer.Exit(1)


def _listed(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _say(line: str) -> None:
    print(line, flush=True)
