"""What was withdrawn, remembered after it is forgotten: so that nobody trains on it again by mistake, or comes back unnoticed.

A host keeps salted digests of its pairs that a run has forgotten, of their pictures alone too. The server keeps those of pairs
and labels that were named to it, for each host its own, and the clients that have left with the digests of their keys. What a
host has lost, the server tells it again. So an entry is taken out by hand, on both sides.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ease_flwr.config import ConfigError, Section
from ease_flwr.config.request import now
from ease_flwr.store.files import locked

NAME = "withdrawn.json"


def salted(salt: str, what: str) -> str:
    """Of an id of a pair, or a label: 32 hex digits."""
    return hashlib.sha256(f"{salt}{what}".encode()).hexdigest()[:32]


class Pair(Section):
    """A pair, or a picture, that was withdrawn. client: whose."""

    client: str
    run: str
    at: str


class Labels(Section):
    """Labels that were withdrawn, as digests. clients: whose pairs a run had learnt."""

    clients: tuple[str, ...]
    labels: tuple[str, ...]
    at: str


class Gone(Section):
    """A client that has left."""

    run: str
    request: str
    keys: tuple[str, ...]
    """Digests of public keys that its node had."""
    at: str


class Memory(Section):
    """All that is remembered on a machine."""

    salt: str = ""
    pairs: dict[str, Pair] = Field(default_factory=dict)
    """By digest."""
    classes: dict[str, Labels] = Field(default_factory=dict)
    """On the server: by run and request."""
    heard: tuple[str, ...] = ()
    """On a host: of which of these it has heard."""
    clients: dict[str, Gone] = Field(default_factory=dict)
    """By name."""


class Told(Section):
    """What the server tells one host of its memory: what this host has withdrawn, as digests by this salt."""

    salt: str
    pairs: tuple[str, ...] = ()
    classes: dict[str, tuple[str, ...]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Tombstones:
    """The memory of a machine, in FOLDER/withdrawn.json, mode 0600."""

    folder: Path

    @property
    def file(self) -> Path:
        """Where it is."""
        return self.folder / NAME

    def read(self) -> Memory:
        """All of it. Raises ConfigError where the file is broken: it is never taken for empty."""
        try:
            return Memory.model_validate_json(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Memory()
        except (OSError, ValueError, ValidationError) as error:
            why = " ".join(str(error).split())[:200]
            raise ConfigError(f"{self.file}: not what was withdrawn here ({why}): restore it from a backup") from None

    @property
    def digests(self) -> tuple[str, ...]:
        """The salt, and the digests of all pairs; () where there are none."""
        found = self.read()
        return (found.salt, *sorted(found.pairs)) if found.pairs else ()

    def told(self, client: str) -> Told | None:
        """What a host is told; None where it has nothing to hear."""
        found = self.read()
        pairs = tuple(sorted(d for d, about in found.pairs.items() if about.client == client))
        classes = {key: about.labels for key, about in found.classes.items() if client in about.clients}
        return Told(salt=found.salt, pairs=pairs, classes=classes) if pairs or classes else None

    def add(self, client: str, run: str, what: Iterable[str], heard: Collection[str] = ()) -> None:
        """Remember pairs and pictures of a client by their ids. heard: what a host has heard of by now."""
        found = list(what)

        def change(kept: Memory) -> dict[str, Any]:
            new = {salted(kept.salt, i): Pair(client=client, run=run, at=now()) for i in found}
            return {"pairs": new | kept.pairs, "heard": tuple(dict.fromkeys((*kept.heard, *heard)))}

        if found or set(heard) - set(self.read().heard):
            self._change(change)

    def add_class(self, key: str, labels: Iterable[str], clients: Iterable[str]) -> None:
        """Remember the labels of a request. key: of run and request."""

        def change(kept: Memory) -> dict[str, Any]:
            digests = tuple(salted(kept.salt, label) for label in labels)
            return {"classes": {key: Labels(clients=tuple(clients), labels=digests, at=now()), **kept.classes}}

        self._change(change)

    def bury(self, client: str, run: str, request: str, key: str) -> None:
        """Remember a client that has left by a request. key: digest of its node's public key, "" where it has none."""

        def change(kept: Memory) -> dict[str, Any]:
            before = kept.clients.get(client)
            keys = (*(before.keys if before else ()), *((key,) if key else ()))
            gone = Gone(run=run, request=request, keys=tuple(dict.fromkeys(keys)), at=before.at if before else now())
            return {"clients": {**kept.clients, client: gone}}

        self._change(change)

    def _change(self, change: Callable[[Memory], dict[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.file.with_suffix(".lock"), wait=True):
            before = self.read()
            kept = before.model_copy(update={"salt": before.salt or secrets.token_hex(16)})
            kept = kept.model_copy(update=change(kept))
            if kept == before:
                return
            partial = self.file.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as f:
                f.write(json.dumps(kept.model_dump(mode="json"), indent=1) + "\n")
            partial.replace(self.file)
