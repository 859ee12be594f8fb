"""Which clients a run has met: clients.json, written at every roll call. It tells whose data have changed since learning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ease_flwr.config import ConfigError, Section
from ease_flwr.config.request import now
from ease_flwr.store.files import write_json
from ease_flwr.store.layout import RunLayout


class Client(Section):
    """What a run knows of a client."""

    pairs: int
    """Training pairs when it was last there."""
    data: str = ""
    """Digest of their content then."""
    learnt: str = ""
    """Digest of their content when the run first trained on them; "" before that, and in a simulation."""
    learnt_pairs: int = 0
    code: str
    base: str
    node: str = ""
    """Id of its node."""
    key: str = ""
    """sha256 of its node's public key, or ""."""
    first: str
    """When it was first there, UTC."""
    last: str
    """When it last answered a roll call, UTC."""


def read(run: Path) -> dict[str, Client]:
    """By name; empty where no roll call was held yet. Raises ConfigError."""
    file = RunLayout(run).clients
    try:
        said = json.loads(file.read_text(encoding="utf-8"))["clients"]
        return {name: Client.model_validate(about) for name, about in said.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ConfigError(f"{file}: not the clients of a run: {' '.join(str(error).split())[:200]}: restore it") from None


def note(run: Path, there: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Write down who is there: fields of Client by name. Returns a line about each whose data changed since it was learnt,
    or that says of the same data that they are more or fewer pairs."""
    known, found, lines = read(run), {}, list[str]()
    for name, about in there.items():
        before = known.get(name)
        client = Client(**about, first=before.first if before else now(), last=now())
        if before and before.learnt:
            client = client.model_copy(update={"learnt": before.learnt, "learnt_pairs": before.learnt_pairs})
            if client.data != before.learnt:
                lines.append(
                    f"{name}: its data have changed since they were learnt ({before.learnt_pairs} pairs then, {client.pairs} "
                    "now): what was removed there is still in the model until it is asked to be forgotten, what is new is "
                    "learnt when training goes on"
                )
        if before and before.data == client.data and before.pairs != client.pairs:
            lines.append(f"{name}: it says that it has {client.pairs} pairs, and {before.pairs} when it was last there")
        found[name] = client
    _write(run, known | found)
    return lines


def trained(run: Path, names: tuple[str, ...]) -> None:
    """These clients' pairs are learnt from now on, as they are."""
    known = read(run)
    new = {n: known[n] for n in names if n in known and known[n].data and not known[n].learnt}
    if new:
        _write(run, known | {n: c.model_copy(update={"learnt": c.data, "learnt_pairs": c.pairs}) for n, c in new.items()})


def _write(run: Path, clients: Mapping[str, Client]) -> None:
    write_json(RunLayout(run).clients, {"clients": {n: c.model_dump(mode="json") for n, c in sorted(clients.items())}})
