"""After forgetting: what in a run directory still derives from the forgotten data, and deleting it.

Kept is what the run needs to hold the gap shut and to answer for itself, each with its reason. What lies outside the folder
(the database of a SuperLink, backups, hosts of clients) is listed and left to whoever runs it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ease_flwr.core import agenda
from ease_flwr.core.config import ConfigError
from ease_flwr.core.paths import home, locked, write_json
from ease_flwr.core.run import read_phase_file, write_phase_file

LOCK = "holds the gap shut while training goes on: directions derived from what was forgotten, not the data (--lock deletes it)"
MIXED = "updates of a client that stays, made of forgotten and kept pairs together: later requests of others need them"
OUTSIDE = {
    "database and logs of the SuperLink": "not in this folder: messages may be in them until they are deleted there",
    "hosts of the clients": "their data are their owners', with the cache folder if their node config names one",
    "other runs that learnt from the same data": "each is purged by itself",
    "backups": "not known to this app",
}


@dataclass(frozen=True)
class Location:
    """Where something derived from forgotten data is, or was."""

    where: str
    what: str
    status: str
    """purged, to be purged, or kept."""
    reason: str = ""


def residual(run: Path) -> list[Location]:
    """Everything in and around a run directory that derives from what its requests have forgotten. Raises ConfigError."""
    return [Location(where, what, "to be purged") for where, what, _ in _doomed(run)] + _kept(run)


def purge(run: Path, lock: bool = False) -> list[Location]:
    """Delete it, and write purge.json. lock: the lock too; the run cannot go on under it afterwards.

    Raises ConfigError where the run is in use, or has a request that is not done.
    """
    with locked(run / "run.lock"):
        if not _requests(run):
            raise ConfigError(f"{run}: no request to forget is done there, so there is nothing to purge")
        if (run / "journal").is_dir() and any((run / "journal").rglob("*.safetensors")):
            raise ConfigError(f"{run}: a phase is not finished: `ease resume {run}` first")
        found = []
        for where, what, paths in _doomed(run):
            for path in paths:
                _delete(path)
            found.append(Location(where, what, "purged"))
        for location in _kept(run):
            if lock and location.reason == LOCK:
                _forget_files(run / location.where, ["lock.safetensors"])
                location = Location(location.where, location.what, "purged")
            found.append(location)
        _clean_audits(run)
        known = {entry["where"]: entry for entry in purged(run)}
        known |= {x.where: asdict(x) for x in found if x.status == "purged"}
        write_json(run / "purge.json", {"at": agenda.now(), "purged": list(known.values())})
    return found


def purged(run: Path) -> list[dict[str, Any]]:
    """What was purged until now."""
    try:
        found: list[dict[str, Any]] = json.loads((run / "purge.json").read_text(encoding="utf-8"))["purged"]
    except FileNotFoundError:
        return []
    return found


def _requests(run: Path) -> list[tuple[agenda.Step, str]]:
    """Requests that are done, with their phases."""
    steps = [s for s in agenda.read(run) if s.kind == "forget"]
    named = [(s, "forget" if i == 1 else f"forget-{i}") for i, s in enumerate(steps, 1)]
    return [(s, name) for s, name in named if (run / "phases" / name / "phase.json").is_file()]


def _doomed(run: Path) -> list[tuple[str, str, list[Path]]]:
    """(where, what, paths) of all that is there and should go."""
    requests = _requests(run)
    if not requests:
        return []
    out: list[tuple[str, str, list[Path]]] = []
    phases = run / "phases"
    leaving = {client for step, _ in requests if step.forget for client in step.forget.leaving()}
    for client in sorted(leaving):
        out += [(f"{p.relative_to(run)}", f"updates of {client}", [p]) for p in sorted(phases.glob(f"*/history/{client}"))]
    last = requests[-1][1]
    order = _phases_in_order(run)
    for name in order[: order.index(last)]:
        for file in ("theta.safetensors", "lock.safetensors"):
            if (phases / name / file).is_file():
                out.append(
                    (
                        f"phases/{name}/{file}",
                        "adapters that know it" if "theta" in file else "an older lock",
                        [phases / name / file],
                    )
                )
    for folder in sorted((run / "adapters").glob("*")):
        if folder.name == "original" or folder.name.startswith("unlearned_"):
            out.append((f"adapters/{folder.name}", "adapters that know it", [folder]))
    for name in order:
        key = read_phase_file(phases / name)["cache"]
        if name == "learn" and key and (home() / "cache" / key).is_dir():
            out.append((f"cache/{key}", "the learn phase, kept for other runs", [home() / "cache" / key]))
    for name, what in (("shadows", "federations like it"), ("report.html", "a report"), ("figures", "figures of a report")):
        if (run / name).exists():
            out.append((name, what, [run / name]))
    for audit in sorted(run.glob("**/audit.json")):
        if json.loads(audit.read_text(encoding="utf-8")).get("scores"):
            out.append((f"{audit.relative_to(run)}: scores", "similarities of single pairs", []))
    return out


def _kept(run: Path) -> list[Location]:
    requests = _requests(run)
    out = []
    for name in _phases_in_order(run):
        if requests and name == requests[-1][1] and (run / "phases" / name / "lock.safetensors").is_file():
            out.append(Location(f"phases/{name}", "the forget lock", "kept", LOCK))
    if any(step.forget and step.forget.scenario != "client" for step, _ in requests):
        out += [
            Location(f"{p.relative_to(run)}", f"updates of {p.name}", "kept", MIXED)
            for p in sorted((run / "phases").glob("*/history/*"))
            if p.is_dir()
        ]
    out += [Location(where, "", "kept", reason) for where, reason in OUTSIDE.items()]
    return out


def _phases_in_order(run: Path) -> list[str]:
    """Phases of the agenda that are done."""
    return [n for n in agenda.names(agenda.read(run)) if (run / "phases" / n / "phase.json").is_file()]


def _delete(path: Path) -> None:
    """A file or folder; of a phase, the list of its files is kept true."""
    if "phases" in path.parts:
        at = path.parts.index("phases")
        phase = Path(*path.parts[: at + 2])
        content = read_phase_file(phase)
        gone = [f for f in content["files"] if phase / f == path or path in (phase / f).parents]
        _forget_files(phase, gone)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _forget_files(phase: Path, names: list[str]) -> None:
    content = read_phase_file(phase)
    content["purged"] = sorted({*content.get("purged", []), *names})
    content["files"] = {f: digest for f, digest in content["files"].items() if f not in names}
    write_phase_file(phase, content)
    for name in names:
        (phase / name).unlink(missing_ok=True)


def _clean_audits(run: Path) -> None:
    """Scores of single pairs leave the audits; what they came to stays."""
    for file in run.glob("**/audit.json"):
        found = json.loads(file.read_text(encoding="utf-8"))
        if found.get("scores"):
            write_json(file, {**found, "scores": {}})
