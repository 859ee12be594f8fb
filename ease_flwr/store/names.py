"""Whose key is whose: kept by the server from the first roll call on, so that no client takes the name of another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ease_flwr.config import ConfigError
from ease_flwr.store.files import home, locked, write_json


def _file() -> Path:
    return home() / "names.json"


def known() -> dict[str, str]:
    """By client that was ever there: sha256 of the public key of its node. Raises ConfigError where the file is broken."""
    file = _file()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["keys"]
        if not all(isinstance(name, str) and isinstance(key, str) for name, key in found.items()):
            raise ValueError("expected a key for each name")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"{file}: not the keys of clients ({why}): restore it from a backup") from None
    return dict(found)


def bind(keys: Mapping[str, str]) -> list[str]:
    """Keep these keys by name; those of no key bind nothing. Returns the names that had another key before."""
    there = {name: key for name, key in keys.items() if key}
    if not there.items() - known().items():
        return []
    home().mkdir(parents=True, exist_ok=True)
    with locked(_file().with_suffix(".lock"), wait=True):
        before = known()
        write_json(_file(), {"keys": dict(sorted((before | there).items()))})
    return sorted(name for name, key in there.items() if before.get(name, key) != key)
