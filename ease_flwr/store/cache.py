"""Arrays that a host keeps on disk between processes: computed once, block by block, memory-mapped afterwards.

KEY.npy is the array; KEY.json beside it holds the sha256 of each block of ROWS rows. What was interrupted goes on with the
first block that is missing; what does not fit its checksum is computed again when it is verified (`ease data prepare`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from ease_flwr.store.files import locked, write_json

ROWS = 256
Compute = Callable[[int, int], NDArray[Any]]


@dataclass(frozen=True)
class Place:
    """Where an array is kept: folder/KEY.npy; nowhere where there is no folder."""

    folder: str
    key: str
    limit: float = 0
    """GiB that the folder may fill; what was used longest ago is deleted first. 0: any number."""


def kept(
    place: Place, count: int, compute: Compute, verify: bool = False, say: Callable[[str], None] = lambda _: None
) -> NDArray[Any]:
    """Rows compute(0, n), compute(n, 2 n), ... of an array of `count` > 0 rows, copy-on-write from its place.

    Without a folder they are computed and nothing is written. verify: read all of it and compute again what does not fit its
    checksum.
    """
    if not place.folder:
        return np.concatenate([compute(i, min(i + ROWS, count)) for i in range(0, count, ROWS)])
    file = Path(place.folder) / f"{place.key}.npy"
    if not file.is_file() or verify:
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file.with_suffix(".lock"), wait=True):  # another process may be at the same array
            _fill(file, count, compute, verify, say)
        if place.limit:
            _prune(file, place.limit)
    try:
        found: NDArray[Any] = np.load(file, mmap_mode="c", allow_pickle=False)
        if len(found) != count:
            raise ValueError(f"{len(found)} rows")
    except (OSError, ValueError):  # cut, or no array at all
        file.unlink(missing_ok=True)
        return kept(place, count, compute, verify, say)
    os.utime(file)
    return found


def _fill(file: Path, count: int, compute: Compute, verify: bool, say: Callable[[str], None]) -> None:
    """Write what is missing, or does not fit its checksum, of an array."""
    sums, partial = file.with_suffix(".json"), file.with_suffix(".partial")
    if file.is_file():
        if not verify:
            return  # another process was faster
        file.replace(partial)
    try:
        known = dict(json.loads(sums.read_text(encoding="utf-8")))
        array = open_memmap(partial, mode="r+")
        if len(array) != count:
            raise ValueError
    except (OSError, ValueError):
        known, array = {}, None
    for start in range(0, count, ROWS):
        stop = min(start + ROWS, count)
        if array is not None and known.get(str(start)) == _sha256(array[start:stop]):
            continue
        rows = compute(start, stop)
        if array is None or array.dtype != rows.dtype or array.shape[1:] != rows.shape[1:]:
            array, known = open_memmap(partial, mode="w+", dtype=rows.dtype, shape=(count, *rows.shape[1:])), {}
            if hasattr(os, "posix_fallocate"):  # a disk that is too small says so here; later it would end the process
                with partial.open("r+b") as f:
                    os.posix_fallocate(f.fileno(), 0, partial.stat().st_size)
        array[start:stop] = rows
        array.flush()
        known[str(start)] = _sha256(rows)
        write_json(sums, known)
        say(f"{stop}/{count}")
    partial.replace(file)


def _sha256(rows: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()


def _prune(latest: Path, limit: float) -> None:
    """Delete the arrays of a folder that were used longest ago, until it holds no more than `limit` GiB; never the latest."""
    sizes, times = {}, {}
    for file in latest.parent.glob("*.npy"):
        with suppress(FileNotFoundError):  # another process deletes too
            sizes[file], times[file] = file.stat().st_size, file.stat().st_mtime
    total = sum(sizes.values())
    for file in sorted(sizes, key=lambda f: times[f]):
        if total <= limit * 2**30:
            return
        if file != latest:
            total -= sizes[file]
            file.unlink(missing_ok=True)  # who has it mapped keeps it
            file.with_suffix(".json").unlink(missing_ok=True)
