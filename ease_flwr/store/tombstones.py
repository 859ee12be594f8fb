"""What was withdrawn, remembered after it is forgotten: so that nobody trains on it again by mistake, or comes back unnoticed.

A host keeps the digests of its pairs that a run has forgotten, and the server those that were named to it one by one, with the
clients that have left and their keys. Digests are salted: they tell whether a pair is among them, and nothing else. The file
belongs to whoever runs the machine: deleting an entry allows its pair again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ease_flwr.config import ConfigError
from ease_flwr.config.request import now
from ease_flwr.store.files import locked

NAME = "withdrawn.json"


def salted(salt: str, pair: str) -> str:
    """Of an id of a pair: 32 hex digits."""
    return hashlib.sha256(f"{salt}{pair}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Tombstones:
    """Those of one machine, in FOLDER/withdrawn.json. run: a key of the run that has forgotten them (config/identity.py).

    salt.  pairs: {digest: {"run", "at"}}.  clients: {name: {"run", "request", "key", "at"}}.  classes: {request: {"run",
    "labels", "at"}}; on a host those that it has heard of: its pairs with these labels are among `pairs` since.
    """

    folder: Path

    @property
    def file(self) -> Path:
        """Mode 0600."""
        return self.folder / NAME

    def read(self) -> dict[str, Any]:
        """All of them. Raises ConfigError where the file is broken: it is never taken for empty."""
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            return {"salt": str(found["salt"]), **{k: dict(found[k]) for k in ("pairs", "clients", "classes")}}
        except FileNotFoundError:
            return {"salt": "", "pairs": {}, "clients": {}, "classes": {}}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.file}: not a list of what was withdrawn ({error}): restore it from a backup") from None

    def of_others(self, run: str) -> tuple[str, ...]:
        """The salt, and the digests of pairs that other runs have forgotten; () where there are none."""
        found = self.read()
        pairs = sorted(d for d, about in found["pairs"].items() if about["run"] != run)
        return (found["salt"], *pairs) if pairs else ()

    def classes_of_others(self, run: str) -> dict[str, tuple[str, ...]]:
        """By request, labels that other runs have forgotten."""
        return {r: tuple(about["labels"]) for r, about in self.read()["classes"].items() if about["run"] != run}

    def add_class(self, run: str, request: str, labels: Iterable[str]) -> None:
        """Remember the labels of a request."""

        def change(kept: dict[str, Any]) -> None:
            kept["classes"].setdefault(request, {"run": run, "labels": list(labels), "at": now()})

        self._change(change)

    def add(self, run: str, pairs: Iterable[str]) -> None:
        """Remember pairs by their ids. What is there already stays as it is."""
        found = list(pairs)
        if not found:
            return

        def change(kept: dict[str, Any]) -> None:
            for pair in found:
                kept["pairs"].setdefault(salted(kept["salt"], pair), {"run": run, "at": now()})

        self._change(change)

    def bury(self, client: str, run: str, request: str, key: str) -> None:
        """Remember a client that has left by a request. key: digest of its node's public key, "" where it has none."""

        def change(kept: dict[str, Any]) -> None:
            about = {"run": run, "request": request, "key": key, "at": now()}
            kept["clients"][client] = {**about, **{k: v for k, v in kept["clients"].get(client, {}).items() if v}}

        self._change(change)

    def _change(self, change: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.file.with_suffix(".lock"), wait=True):
            kept = self.read()
            kept["salt"] = kept["salt"] or secrets.token_hex(16)
            before = json.dumps(kept)
            change(kept)
            if json.dumps(kept) == before and self.file.is_file():
                return
            partial = self.file.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as f:
                f.write(json.dumps(kept, indent=1) + "\n")
            partial.replace(self.file)
