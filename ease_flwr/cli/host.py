"""`ease host`: for the owner of a host: which code runs there, what is allowed, and what was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ease_flwr.cli.shared import mistakes

host = typer.Typer(no_args_is_help=True, help="For the owner of a host: which code runs there, and what was asked of it.")

HOST = Annotated[Path, typer.Argument(help="Folder of the host, /opt/ease/NAME for example.")]


@host.command("review")
def host_review(
    folder: HOST,
    digest: Annotated[str, typer.Argument(help="Beginning of a bundle's sha256; default: the newest that is offered.")] = "",
    diff: Annotated[bool, typer.Option("--diff", help="Show every line that has changed.")] = False,
) -> None:
    """What the server would have run here, beside what is pinned: file by file. Nothing of it is run or unpacked."""
    with mistakes("host review"):
        from ease_flwr.hosts import pinned

        print(pinned.review(folder.absolute(), digest, diff))


@host.command("accept")
def host_accept(
    folder: HOST,
    digest: Annotated[
        str, typer.Argument(help="Beginning of a bundle's sha256, as `ease host review` shows it; or: installed.")
    ],
) -> None:
    """Pin a bundle in policy.toml: from now on it may run here. `installed` is what the program on this machine is."""
    with mistakes("host accept"):
        from ease_flwr.hosts import pinned

        print(f"{pinned.accept(folder.absolute(), digest)} may run here; {folder}/policy.toml lists what else may")


@host.command("policy")
def host_policy(folder: HOST) -> None:
    """Check policy.toml. Where a host has none yet, write one: what is installed here may run, and all that it can do."""
    with mistakes("host policy"):
        from ease_flwr.hosts import deploy, policy

        new = not (folder / policy.POLICY).is_file()
        file = deploy.policy(folder.absolute())
        if new:
            print(f"{file}: written; look through it")
        found = policy.read_policy(file)
    print(f"{file}: {len(found.code)} bundles, {len(found.objectives)} objectives and {len(found.probes)} probes are allowed")


@host.command("log")
def host_log(
    folder: HOST,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON line a message, for programs.")] = False,
) -> None:
    """What was asked of this host, when, by which run, and what left it: a line a message, oldest first."""
    with mistakes("host log"):
        from ease_flwr.hosts import owners_log

        for message in owners_log.joined(folder.absolute()):
            print(json.dumps(message) if as_json else owners_log.in_words(message))
