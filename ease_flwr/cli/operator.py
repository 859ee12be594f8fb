"""Commands of `ease` for whoever runs a federation: requests to forget, going on, purging, receipts, deployment."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ease_flwr import config
from ease_flwr.cli.hosts import status
from ease_flwr.cli.shared import CPUS, GPUS, QUORUM, RAY, RUN, SUPERLINK, here, mistakes
from ease_flwr.cli.terminal import DATA, FORGETTING, HOSTS, JUDGING

UNSEEN = f"{string.whitespace}\u00a0\u200b\u200c\u200d\u2060\ufeff"
"""What is around a name and is no part of it: blanks, and what editors and web pages leave."""
SET = Annotated[list[str] | None, typer.Option(help="key=value of the strategy; may be repeated.")]


def resume(
    run: RUN, superlink: SUPERLINK = "", client_cpus: CPUS = 1, client_gpus: GPUS = 0.0, ray: RAY = "", quorum: QUORUM = 0.0
) -> None:
    """Go on with a run that was killed, or whose request queue has something left; the result is as if nothing had happened."""
    from ease_flwr import api
    from ease_flwr.hosts.simulation import Where

    with mistakes("resume"):
        api.Run(run.absolute()).resume(Where(superlink, client_cpus, client_gpus, ray, quorum))


def forget(
    run: RUN,
    client: Annotated[list[str] | None, typer.Option(help="Client that leaves; may be repeated.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label that is withdrawn, whoever holds it; may be repeated.")] = None,
    ids: Annotated[
        Path | None, typer.Option(help="File of single pairs, a line each: CLIENT/PAIR, # begins a remark.", callback=here)
    ] = None,
    strategy: Annotated[str, typer.Option(help="File in strategies/.")] = "ease",
    id: Annotated[str, typer.Option(help="Name of the request; by default it is named by what it asks.")] = "",
    set: SET = None,
    superlink: SUPERLINK = "",
    client_cpus: CPUS = 1,
    client_gpus: GPUS = 0.0,
    ray: RAY = "",
    quorum: QUORUM = 0.0,
) -> None:
    """A request to forget, on a run that has learnt: today or long ago, here or elsewhere. Asked twice it is done once."""
    from ease_flwr import api
    from ease_flwr.hosts.simulation import Where

    with mistakes("forget"):
        asked = {"client": client or (), "label": label or (), "pairs": _lines(ids) if ids else ()}
        if sum(map(bool, asked.values())) != 1:
            raise config.ConfigError("name one of --client, --label and --ids: what is to be forgotten")
        how = api.Request(strategy, config.parse_assignments(set or []), id)
        api.Run(run.absolute()).forget(**asked, request=how, where=Where(superlink, client_cpus, client_gpus, ray, quorum))


def continue_(
    run: RUN,
    rounds: Annotated[int, typer.Option(help="Rounds to go on for.", min=1)] = 5,
    superlink: SUPERLINK = "",
    client_cpus: CPUS = 1,
    client_gpus: GPUS = 0.0,
    ray: RAY = "",
    quorum: QUORUM = 0.0,
) -> None:
    """Those who stay go on learning, under the forget lock."""
    from ease_flwr import api
    from ease_flwr.hosts.simulation import Where

    with mistakes("continue"):
        api.Run(run.absolute()).continue_training(rounds, Where(superlink, client_cpus, client_gpus, ray, quorum))


def withdraw(run: RUN, id: Annotated[str, typer.Argument(help="Of the request: `ease status RUN` lists them.")]) -> None:
    """Take a request back that is not done; the rest of the queue stays."""
    with mistakes("withdraw"):
        from ease_flwr import launcher

        launcher.withdraw(run, id)
        print(f"request {id} is withdrawn; nothing of it was done")


def join(
    run: RUN,
    name: Annotated[str, typer.Argument(help="What its host calls itself: client-name of its node config.")],
    superlink: SUPERLINK = "",
) -> None:
    """Let a new host take part in a run that has learnt, from its next rounds on. `ease forget --client` undoes it."""
    with mistakes("join"):
        from ease_flwr import launcher
        from ease_flwr.hosts import connected

        known = {node.name for node in connected.nodes(superlink)} if superlink else {name}
        if name not in known:
            raise config.ConfigError(f"no host is registered as {name}; registered are {', '.join(sorted(known)) or 'none'}")
        launcher.join(run, name)
        there = f" --superlink {superlink}" if superlink else ""
        print(f"{name} takes part from the next rounds on: `ease continue {run}{there}`")


def reference(
    run: RUN,
    count: Annotated[int, typer.Option(help="Retrainings in all; 0: as many as the experiment says.", min=0)] = 0,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what it costs.")] = False,
    superlink: SUPERLINK = "",
    client_cpus: CPUS = 1,
    client_gpus: GPUS = 0.0,
) -> None:
    """Train the reference of a finished run: learn again without what it has forgotten. Says first what that costs."""
    from ease_flwr import api, launcher
    from ease_flwr.hosts.simulation import Where

    with mistakes("reference"):
        if dry:
            launcher.reference(run, count, Where(), dry=True)
        else:
            api.Run(run.absolute()).reference(count, Where(superlink, client_cpus, client_gpus))


def open_(
    run: RUN,
    data: Annotated[str, typer.Option(help="Folder of the pairs to search; default: those of the run.")] = "",
    client: Annotated[str, typer.Option(help="Whose pairs these are, where the clients of the run are hosts.")] = "",
    pairs: Annotated[int, typer.Option(help="Pairs to search, at most; evenly chosen.", min=10)] = 1000,
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser, where there is a screen.")] = True,
) -> None:
    """A local page: follow a run live, then see its report and search with its models. This machine alone can read it."""
    with mistakes("open"):
        from ease_flwr.web.search import Own
        from ease_flwr.web.server import serve

        root = config.absolute(data, "--data") if data else ""
        serve(run.absolute(), Own(root, client, pairs), port, browser)


def purge(
    run: RUN,
    lock: Annotated[bool, typer.Option("--lock", help="The forget lock too: nothing holds the gap shut afterwards.")] = False,
    updates: Annotated[
        bool, typer.Option("--updates", help="Updates of clients that stay too: methods that read them are refused afterwards.")
    ] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what there is.")] = False,
) -> None:
    """Delete what in a run still derives from what it has forgotten; say what is kept, and why."""
    from ease_flwr.store import purge as purging

    with mistakes("purge"):
        found = purging.residual(run) if dry else purging.purge(run, lock, updates)
    for x in found:
        print(f"{x.status:13} {x.where}" + (f": {x.what}" if x.what else "") + (f" ({x.reason})" if x.reason else ""))


def receipt(
    run: Annotated[str, typer.Argument(help="Folder of a run, or `keygen` to make a key.")],
    key: Annotated[
        Path | None, typer.Option(help="Private key, Ed25519, PEM; default: receipt-key.pem among the runs.", callback=here)
    ] = None,
) -> None:
    """Sign what was asked, what was done and what is left: RUN/receipt.json, chained in RUN/ledger.jsonl."""
    from ease_flwr.store.files import home

    with mistakes("receipt"):
        from ease_flwr.audit import envelope
        from ease_flwr.audit import receipt as receipts

        file = key or home() / "receipt-key.pem"
        if run == "keygen":
            public = envelope.keygen(file)
            print(f"private key in {file}: keep it to yourself; public key in {public}: for who is to verify")
        else:
            print(receipts.make(Path(run), file))


def verify(
    path: Annotated[Path, typer.Argument(help="Folder of a run, or a receipt.")],
    key: Annotated[Path | None, typer.Option(help="Public key that must have signed.", callback=here)] = None,
) -> None:
    """Recompute every digest and signature of a run's receipts, and name the first that does not fit."""
    with mistakes("verify"):
        from ease_flwr.audit import receipt as receipts

        print("\n".join(receipts.verify(path, key)))


class Form(StrEnum):
    """What `ease export` writes."""

    open_clip = "open_clip"
    peft = "peft"


def export(
    run: RUN,
    model: Annotated[str, typer.Argument(help="Of the run: unlearned, continued, original, ... (folders in RUN/adapters).")],
    to: Annotated[Path, typer.Option(help="New file, .safetensors; with --format peft a new folder.", callback=here)],
    form: Annotated[
        Form, typer.Option("--format", help="A whole open_clip checkpoint, or a folder of adapters for this project.")
    ] = Form.open_clip,
    merged: Annotated[
        bool, typer.Option("--merged", help="Adapters added to the weights; an open_clip checkpoint is always so.")
    ] = False,
) -> None:
    """Write a model of a run as one checkpoint that open_clip loads, or as a folder of adapters."""
    with mistakes("export"):
        if merged and form is Form.peft:
            raise config.ConfigError("--merged: a PEFT folder holds adapters alone: leave it out, or use --format open_clip")
        from ease_flwr.audit.export import export_run

        print(export_run(run, model, to, form.value))


def _lines(file: Path) -> list[str]:
    """Of a file: without remarks, empty lines, and characters that nobody sees. Raises ConfigError."""
    from ease_flwr.data.tables import text_of

    try:
        lines = [re.split(r"(?:^|\s)#", line)[0].strip(UNSEEN) for line in text_of(file.read_bytes()).splitlines()]
    except (OSError, ValueError) as error:
        raise config.ConfigError(f"--ids {file}: {getattr(error, 'strerror', None) or error}") from None
    if not (found := [line for line in lines if line]):
        raise config.ConfigError(f"--ids {file}: no pair in it: write a line each, CLIENT/PAIR")
    return found


def app(folder: Annotated[Path, typer.Argument(help="New folder; letters, digits and hyphens.")] = Path("ease-flwr")) -> None:
    """Lay the Flower app out in a folder, for `flwr build` and `flwr app publish` (docs/hub.md)."""
    with mistakes("app"):
        from ease_flwr.hosts import app as apps

        apps.write(folder.absolute())
        print(f"{folder}: `flwr build --app {folder}` packs it, `flwr app publish {folder}` publishes it")


COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    FORGETTING: {
        "forget": forget,
        "continue": continue_,
        "resume": resume,
        "withdraw": withdraw,
        "join": join,
        "purge": purge,
    },
    JUDGING: {"open": open_, "reference": reference, "receipt": receipt, "verify": verify},
    HOSTS: {"status": status, "app": app},
    DATA: {"export": export},
}
