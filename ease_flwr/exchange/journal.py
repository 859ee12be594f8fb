"""Exchanges of an unfinished phase on disk, so that a run that was killed goes on as if nothing had happened.

A strategy computes on the server from what clients have answered, and nothing else. So the answers are kept, one file an
exchange, and a resumed phase starts at its beginning: what was answered before is read, not asked again, and everything else
is computed anew, to the last bit. No method has to save a state of its own. A file is written atomically and holds a digest of
what was asked and of what it says; the journal of a phase is deleted when the phase is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ease_flwr.config import ConfigError

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Exchange:
    """What came of one exchange: arrays by "CLIENT/KEY", and anything that JSON holds."""

    info: dict[str, Any]
    arrays: Arrays = field(default_factory=dict)

    def sha256(self, asked: str) -> str:
        h = hashlib.sha256(json.dumps([asked, self.info], sort_keys=True).encode())
        for name, array in sorted(self.arrays.items()):
            h.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return h.hexdigest()


class Journal:
    """The exchanges of one phase in a folder, in order. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.count = 0
        self.kept = len(list(folder.glob("*.safetensors"))) if folder else 0
        """Exchanges that were there when it was opened."""

    @property
    def resumed(self) -> bool:
        """Whether the exchange at hand is the first after those that another process has made."""
        return self.kept > 0 and self.count == self.kept + 1

    @property
    def replaying(self) -> bool:
        """Whether all exchanges so far were made by another process."""
        return 0 < self.count <= self.kept

    def once(self, asked: str, exchange: Callable[[], Exchange]) -> Exchange:
        """The next exchange: as it is kept, or done now and kept. asked: digest of the question.

        Raises ConfigError where the file is broken, or answers another question.
        """
        if not self.folder:
            return exchange()
        file = self.folder / f"{self.count:05d}.safetensors"
        self.count += 1
        if self.count <= self.kept:
            return read(file, asked)
        found = exchange()
        self.folder.mkdir(parents=True, exist_ok=True)
        said = {"asked": asked, "info": json.dumps(found.info), "sha256": found.sha256(asked)}
        partial = file.with_suffix(".partial")
        save_file({k: np.ascontiguousarray(a) for k, a in found.arrays.items()}, partial, metadata=said)
        partial.replace(file)
        return found


def read(file: Path, asked: str) -> Exchange:
    """One exchange as it was kept. Raises ConfigError."""
    try:
        with safe_open(file, framework="numpy") as f:
            said = f.metadata()
            found = Exchange(json.loads(said["info"]), {k: f.get_tensor(k) for k in f.keys()})  # noqa: SIM118
        whole = said["sha256"] == found.sha256(said["asked"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{file}: not an exchange of this run ({error}): {CURE}") from None
    if not whole:
        raise ConfigError(f"{file}: its content does not fit its sha256, it was changed or cut: {CURE}")
    if said["asked"] != asked:
        raise ConfigError(f"{file}: kept for another question, by other settings or other code: {CURE}")
    return found


CURE = "restore it, or remove it and the later ones of its folder to ask again from there"
