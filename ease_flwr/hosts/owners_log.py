"""The owner's log of a host: what was asked of it, when, and what left it. A file a day in log/, one JSON line an event.

Lines are only ever added, and are on disk before anything is done or sent. A message has two: what was asked, what came of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ease_flwr.exchange.transport import plain
from ease_flwr.hosts.policy import COUNTED
from ease_flwr.hosts.writing import SECRET

LOG = "log"
"""Folder of the log in a host's folder."""
SHORT = 200
"""Characters of one thing that the server said."""


def write(home: Path, now: datetime, line: dict[str, Any]) -> None:
    """Add a line to the file of its day."""
    file = _file(home, now)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    said = json.dumps({"time": now.isoformat(timespec="seconds"), **line}, ensure_ascii=True) + "\n"
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, SECRET), "r+b") as f:
        cut = f.seek(0, os.SEEK_END) and (f.seek(-1, os.SEEK_END), f.read())[1] != b"\n"  # by a crash
        f.write(b"\n" * cut + said.encode())
        f.flush()
        os.fsync(f.fileno())


def read(home: Path) -> Iterator[dict[str, Any]]:
    """All lines, oldest first. What was cut by a crash is left out."""
    for file in sorted((home / LOG).glob("*.jsonl")):
        yield from _lines(file)


def done(home: Path, now: datetime) -> int:
    """Messages of today that trained, evaluated or audited, or began to."""
    refused, counted = set(), list[str]()
    for line in _lines(_file(home, now)):
        if line.get("asked") in COUNTED:
            counted.append(line["message"])
        elif "refused" in line:
            refused.add(line["message"])
    return sum(message not in refused for message in counted)


def joined(home: Path) -> list[dict[str, Any]]:
    """A dictionary a message: what was asked, and what came of it."""
    found: dict[str, dict[str, Any]] = {}
    for line in read(home):
        found.setdefault(str(line.get("message")), {}).update({k: v for k, v in line.items() if k != "time" or "asked" in line})
    return list(found.values())


def in_words(line: dict[str, Any]) -> str:
    """A message in one line."""
    where = " ".join(str(line[k]) for k in ("phase", "round", "objective", "probes", "forget") if line.get(k))
    run = Path(str(line.get("run_dir", ""))).name or line.get("run", "?")
    came = "nothing yet"
    if sent := line.get("sent"):
        parts = [f"{name} {shape}" for name, shape in sent["arrays"].items()] + sent["metrics"]
        came = f"sent {sent['bytes']} bytes: {', '.join(parts) or 'counts'}"
    for key in ("refused", "failed"):
        if key in line:
            came = f"{key}: {line[key]}"
    return plain(f"{line.get('time', '?')}  {run}  {line.get('asked', '?')} {where}".rstrip() + f"  {came}")


def _file(home: Path, now: datetime) -> Path:
    return home / LOG / f"{now:%Y-%m-%d}.jsonl"


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line
