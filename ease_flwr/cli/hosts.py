"""`ease status`, and how a server is kept: backup, restore, upgrade."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ease_flwr.cli.deploy import deploy
from ease_flwr.cli.shared import here, mistakes

WIDTH = 100


def status(
    run: Annotated[Path | None, typer.Argument(help="Folder of a run; default: all among the runs, a line each.")] = None,
    superlink: Annotated[str, typer.Option(help="Connection of the flwr CLI: also who is connected, and certificates.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For programs; the schema is in docs/operations.md.")] = False,
) -> None:
    """How a federation is: hosts by name, requests, disk, certificates. Exit status 0: all is well, 1: something needs a
    person, 2: wrong input, or the SuperLink does not answer."""
    from ease_flwr.following import situation
    from ease_flwr.hosts import status as state
    from ease_flwr.store.files import home

    with mistakes("status"):
        federation = state.ask(superlink)
        found = state.of_run(run.absolute(), federation, situation) if run else state.of_all(home(), federation, situation)
    print(json.dumps(found, indent=1) if as_json else "\n".join(_page(found)))
    raise typer.Exit(0 if found["ok"] else 1)


def _page(found: dict[str, Any]) -> Iterator[str]:
    """Plain text of at most WIDTH columns; what needs a person is at its end, and is never cut."""
    if run := found.get("run"):
        yield f"{run['folder']}: {run['experiment']}, {_doing(run)}"
        yield from _table(("step", "state", "request", "asks", "since"), [_step(s) for s in run["queue"]])
        yield ""
        head = ("client", "online", "since", "pairs", "code", "model", "last answer")
        yield from _table(head, [_client(c) for c in run["clients"]])
    else:
        yield f"runs in {found['home']}: {len(found['runs'])}"
        yield from _table(("run", "status", "at hand", "steps"), [_run(r) for r in found["runs"]])
        if found["superlink"]:
            yield ""
            rows = [(n["name"] or n["node"], "yes" if n["online"] else "no", n["since"]) for n in found["nodes"]]
            yield from _table(("host", "online", "since"), rows)
    disk = found["disk"]
    yield ""
    yield f"code here {found['code'][:12]}; disk {disk['free'] / 2**30:.1f} of {disk['total'] / 2**30:.1f} GiB free"
    for certificate in found["certificates"]:
        yield f"{certificate['file']}: good for {certificate['days']} days"
    yield from (f"! {line}" for line in found["attention"]) if found["attention"] else ["all is well"]


def _doing(run: dict[str, Any]) -> str:
    """Status, phase and round of a run, in words."""
    where = run["round"] if run["phase"] else {}
    at = f" {where['round']}/{where['last']}" if where and run["phase"].startswith(where["model"]) else ""
    return f"{run['status']}, {run['phase']}{at}" if run["phase"] else str(run["status"])


def _step(step: dict[str, Any]) -> tuple[str, ...]:
    return step["phase"], step["state"], step["request"], step["asked"], step["received"]


def _client(client: dict[str, Any]) -> tuple[str, ...]:
    """A row. The code is marked where it is not what is installed here."""
    online = {True: "yes", False: "no", None: "?"}[client["online"]]
    gone = "has left" if client["departed"] else online if client["expected"] else f"{online} (leaves)"
    code = client["code"][:10] + ("" if client["same_code"] in (True, None) else " other")
    pairs = "" if client["pairs"] is None else str(client["pairs"])
    return client["name"], gone, client["since"], pairs, code, client["base"][:10], client["last"]


def _run(run: dict[str, Any]) -> tuple[str, ...]:
    steps = ", ".join(f"{count} {state}" for state, count in run["steps"].items() if count)
    return Path(run["folder"]).name, run["status"], _doing(run).partition(", ")[2], steps


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns with two blanks between; the widest gives way where a row would be longer than WIDTH."""
    if not rows:
        return
    widths = [max(len(row[i] or "-") for row in (head, *rows)) for i in range(len(head))]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        widths[widths.index(max(widths))] -= 1
    for row in (head, *rows):
        cells = [
            cell if len(cell) <= w else f"{cell[: w - 1]}…" for cell, w in zip((c or "-" for c in row), widths, strict=True)
        ]
        yield "  ".join(f"{cell:{w}}" for cell, w in zip(cells, widths, strict=True)).rstrip()


SERVER = Annotated[Path, typer.Argument(help="The server's own folder: /opt/ease/server.")]


@deploy.command("backup")
def deploy_backup(
    server: SERVER,
    file: Annotated[Path, typer.Argument(help="New file, .tar; only its owner can read it.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for runs that are at work; by default they are an error.")] = False,
) -> None:
    """Keep all that the server needs to go on elsewhere in one file: keys, certificates, settings, database, runs."""
    with mistakes("deploy backup"):
        from ease_flwr.hosts import backup

        count = backup.backup(server, file, wait)
    print(f"{count} files in {file}, {file.stat().st_size} bytes: it holds private keys, and what the runs know")


@deploy.command("restore")
def deploy_restore(
    file: Annotated[Path, typer.Argument(help="File of `ease deploy backup`.")],
    server: Annotated[Path, typer.Argument(help="New folder; /opt/ease/server, or wherever the server shall be.")],
) -> None:
    """Write a backup into a new folder, once every file of it is as its manifest says."""
    with mistakes("deploy restore"):
        from ease_flwr.hosts import backup

        manifest = backup.restore(file, server)
    print(f"{len(manifest['files'])} files in {server}, as of {manifest['at']}")
    if manifest["folder"] != str(server.absolute()):
        print(f"it was in {manifest['folder']}: docs/operations.md says which files have that path")


@deploy.command("upgrade")
def deploy_upgrade(
    what: Annotated[Path, typer.Argument(help="A wheel, or the folder of a checkout.")],
    server: Annotated[
        Path | None, typer.Option(help="On the server: its folder, whose runs are looked at first.", callback=here)
    ] = None,
    host: Annotated[
        Path | None, typer.Option(help="On a host: its folder, where the new code is pinned as well.", callback=here)
    ] = None,
    superlink: Annotated[str, typer.Option(help="Connection that unfinished runs go on with; for what is said of them.")] = "",
    pip: Annotated[list[str] | None, typer.Option(help="Option of pip, as --pip=--no-index; may be repeated.")] = None,
) -> None:
    """Install other code into this environment, unless a run of this server has a phase at hand."""
    with mistakes("deploy upgrade"):
        from ease_flwr.hosts import upgrade

        if server:
            upgrade.check(server.absolute(), superlink)
        before, after = upgrade.install(what, pip or ())
        pinned = upgrade.pin(host.absolute()) if host else ""
    print(f"code before {before[:12]}, now {after[:12]}" + (": the same" if before == after else ""))
    if pinned:
        print(f"{pinned[:16]} may run here")
    elif not server:
        print("then let it run here: ease host accept FOLDER installed")
    print(f"restart the service here: systemctl restart {'ease-superlink' if server else 'ease-supernode'}")
