"""Where a run is, read from its files: nothing is asked of the process at work, and nothing is locked."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ease_flwr.audit.summary import read_results
from ease_flwr.config import ConfigError
from ease_flwr.hosts.link import read_state
from ease_flwr.store.layout import RunLayout

LINES = 12
"""Last lines of the log that are shown."""
SILENCE = 300.0
"""Seconds without a word after which a run may have been killed."""
AT_WORK = ("submitted", "running")


def at_work(folder: Path) -> Path | None:
    """The folder of what is being done: the run's own, or that of an audit of it; None where all has ended."""
    for part in (folder, *sorted(folder.glob("audit-*"))):
        if read_state(part)["status"] in AT_WORK:
            return part
    return None


def fresh_report(folder: Path) -> bool:
    """Whether report.html is there and not older than the results."""
    layout = RunLayout(folder)
    try:
        return layout.report.stat().st_mtime_ns >= layout.results.stat().st_mtime_ns
    except OSError:
        return False


def finished(folder: Path) -> bool:
    """Whether the run has results, and nothing of it is at work."""
    try:
        read_results(folder)
    except ConfigError:
        return False
    return at_work(folder) is None


def situation(folder: Path, now: float | None = None) -> dict[str, Any]:
    """What the page shows of a run: JSON.

    status, error: as in state.json.  silent: seconds since the last word where these are many, else 0.
    round: the last one {model, round, last, loss, answered, asked, seconds, eta}, empty before the first.
    recall: {set: {model: [[rounds in all, R@1 in percent]]}} on validation pairs.  loss: {model: [[rounds in all, mean]]}.
    log: the last lines.  over: whether all has ended well.  report: whether there is one of it.  table: of a run that is over.
    """
    part = at_work(folder) or folder
    layout = RunLayout(part)
    state = read_state(part)
    events = [*_events(layout.metrics)]
    rounds = [e for e in events if "loss" in e and "last" in e]
    recall: dict[str, dict[str, list[list[float]]]] = {}
    for e in events:
        for name, value in e.get("validation", {}).items():
            recall.setdefault(name, {}).setdefault(e["model"], []).append([e["rounds_in_all"], value])
    loss: dict[str, list[list[float]]] = {}
    for e in rounds:
        loss.setdefault(e["model"], []).append([e["rounds_in_all"], sum(e["loss"]) / len(e["loss"])])
    shown = ("model", "round", "last", "answered", "asked", "seconds", "eta")
    last = rounds[-1] if rounds else {}
    log = layout.log.read_text(encoding="utf-8", errors="replace").splitlines() if layout.log.is_file() else []
    quiet = (time.time() if now is None else now) - max(
        (f.stat().st_mtime for f in (layout.log, layout.state) if f.is_file()), default=0
    )
    return {
        **state,
        "silent": quiet if state["status"] in AT_WORK and quiet > SILENCE else 0,
        "round": {**{k: last[k] for k in shown}, "loss": loss[last["model"]][-1][1]} if last else {},
        "recall": recall,
        "loss": loss,
        "log": log[-LINES:],
        "over": (over := finished(folder)),
        "report": fresh_report(folder),
        "table": layout.table.read_text(encoding="utf-8") if over and layout.table.is_file() else "",
    }


def _events(file: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says so far; a line that is being written is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
