"""Where a run is, read from its files: nothing is asked of the process at work, and nothing is locked."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ease_flwr.audit.page import BEFORE_TABLES
from ease_flwr.audit.summary import read_results
from ease_flwr.config import ConfigError
from ease_flwr.hosts.link import read_state
from ease_flwr.store.layout import RunLayout

LINES = 12
"""Last lines of the log that are shown."""
SILENCE = 300.0
"""Seconds without a word after which a run may have been killed."""
AT_WORK = ("submitted", "running")


def fresh_report(folder: Path) -> bool:
    """Whether report.html is there, of this version, and not older than the results."""
    layout = RunLayout(folder)
    try:
        fresh = layout.report.stat().st_mtime_ns >= layout.results.stat().st_mtime_ns
        return fresh and BEFORE_TABLES in layout.report.read_text(encoding="utf-8")
    except OSError:
        return False


def finished(folder: Path) -> bool:
    """Whether all that was asked of the run has ended well, and it has results."""
    try:
        read_results(folder)
    except ConfigError:
        return False
    return read_state(folder)["status"] == "finished"


def situation(folder: Path, now: float | None = None) -> dict[str, Any]:
    """What the page shows of a run: JSON.

    status, error: as in state.json.  silent: seconds since the last word where these are many, else 0.
    round: the last one since the last roll call {model, round, last, loss, answered, asked, seconds, eta}; empty before that.
    recall: {set: {model: [[rounds in all, R@1 in percent]]}} on validation pairs.  loss: {model: [[rounds in all, mean]]}.
    log: the last lines.  over: whether all has ended well.  report: whether there is one of it.  table: of a run that is over.
    """
    layout, state = RunLayout(folder), read_state(folder)
    events = _events(layout.metrics)
    called = max((i for i, e in enumerate(events) if "roll_call" in e), default=0)
    since = _rounds(events[called:]) if state["status"] != "submitted" else []
    recall: dict[str, dict[str, list[list[float]]]] = {}
    for e in events:
        for name, value in e.get("validation", {}).items():
            recall.setdefault(name, {}).setdefault(e["model"], []).append([e["rounds_in_all"], value])
    loss: dict[str, list[list[float]]] = {}
    for e in _rounds(events):
        loss.setdefault(e["model"], []).append([e["rounds_in_all"], sum(e["loss"]) / len(e["loss"])])
    shown = ("model", "round", "last", "answered", "asked", "seconds", "eta")
    last = since[-1] if since else {}
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


def _rounds(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events that tell of the training of a round."""
    return [e for e in events if e.get("loss") and "last" in e]


def _events(file: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says so far; a line that is being written is left out."""
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            said = json.loads(line)
        except ValueError:
            break
        found += [said] if isinstance(said, dict) else []
    return found
