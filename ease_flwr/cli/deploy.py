"""`ease deploy`: a federation of real hosts, what it needs and how it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ease_flwr.cli.shared import mistakes

deploy = typer.Typer(no_args_is_help=True, help="A federation of real hosts: what it needs, and a proof on this machine.")


@deploy.command("init")
def deploy_init(
    folder: Annotated[Path, typer.Argument(help="New folder; it will hold private keys.")],
    hosts: Annotated[str, typer.Option(help="Names of the clients' hosts, with commas.")],
    address: Annotated[str, typer.Option(help="Name or IP address of the server, as the hosts reach it.")],
    port: Annotated[int, typer.Option(help="Of the server.", min=1, max=65535)] = 9092,
    user: Annotated[str, typer.Option(help="Account that the units run under.")] = "ease",
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS, no keys; on loopback only.")] = False,
) -> None:
    """Write certificates, keys, systemd units, a Compose file and the commands of a federation."""
    with mistakes("deploy init"):
        from ease_flwr.hosts import deploy as deployment

        deployment.init(folder, [h.strip() for h in hosts.split(",")], address, port, insecure, user)
        print(f"written to {folder}; what to do with it is in docs/deploy.md")


@deploy.command("demo")
def deploy_demo(
    run_dir: Annotated[Path | None, typer.Option(help="New folder for keys, logs and runs.")] = None,
) -> None:
    """A SuperLink and three SuperNodes with TLS and keys on this machine; the adapters must be those of a simulation."""
    import time

    from ease_flwr.store.files import home, new_folder

    with mistakes("deploy demo"):
        from ease_flwr.hosts.demo import demo

        folder = (run_dir or home() / f"demo-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
        new_folder(folder)
        raise typer.Exit(demo(folder, lambda line: print(line, flush=True)))
