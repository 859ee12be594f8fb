"""After forgetting: what in a run directory still derives from the forgotten data, and deleting it.

Every file of the run is looked at through its layout. What the run needs to keep the gap shut and to answer for itself stays,
each with its reason. What lies outside the folder (the database of a SuperLink, backups, hosts of clients) is listed, and left
to whoever runs it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ease_flwr.config import ConfigError, ForgetRequest
from ease_flwr.config.request import now
from ease_flwr.store import phases, queue
from ease_flwr.store.files import locked, read_object, write_json
from ease_flwr.store.layout import Artefact, RunLayout

LOCK = "keeps the gap shut while training goes on: directions derived from what was forgotten, not the data (--lock deletes it)"
MIXED = (
    "updates of a client that stays, made of forgotten and kept pairs together: later requests of others need them "
    "(--updates deletes them)"
)
NUMBERS = "counts and statistics: what the run says about itself"
REQUEST = "what was asked, in words: by it the data stay out of later rounds"
OUTSIDE = {
    "database and logs of the SuperLink": "not in this folder: messages may be in them until they are deleted there",
    "hosts of the clients": "their data are their owners', with the cache folder if their node config names one, and with "
    "salted digests of what they withdrew (withdrawn.json)",
    "withdrawn.json among the runs": "who has left, with the digest of a key, and salted digests of single pairs: by it nobody "
    "comes back unnoticed, and nothing is trained on again by mistake",
    "other runs that learnt from the same data": "each is purged by itself",
    "backups": "not known to this app",
}


@dataclass(frozen=True)
class Location:
    """Where something derived from forgotten data is, or was."""

    where: str
    what: str
    status: str
    """purged, to be purged, kept, or unknown."""
    reason: str = ""


@dataclass(frozen=True)
class Forgotten:
    """What the requests of a run that are done have made of it."""

    requests: tuple[ForgetRequest, ...]
    last: str
    """Phase of the latest."""
    departed: frozenset[str]
    """Clients that have nothing left in the federation."""
    partly: frozenset[str]
    """Clients that stay, and held some of what was forgotten."""

    def known_by(self, forgotten: list[str]) -> bool:
        """Whether something that has forgotten these requests still knows another one."""
        return any(r.id not in forgotten for r in self.requests)


def residual(run: Path) -> list[Location]:
    """Everything in and around a run directory that derives from what its requests have forgotten. Raises ConfigError."""
    return [location for location, _ in _looked_at(run, lock=False, updates=False)]


def purge(run: Path, lock: bool = False, updates: bool = False) -> list[Location]:
    """Delete it, and write purge.json; returns what was found, and what was done with it.

    lock: the forget lock too; nothing keeps the gap shut afterwards.  updates: those of clients that stay too; methods that
    read them are refused afterwards.  Raises ConfigError where the run is in use, or has a request that is not done.
    """
    layout = RunLayout(run)
    queue.read(run)
    with locked(layout.run_lock):
        if not queue.served(run):
            raise ConfigError(f"{run}: no request to forget is done there, so there is nothing to purge")
        if any(run.glob("journal/*/*.safetensors")):
            raise ConfigError(f"{run}: a phase is not finished: `ease resume {run}` first")
        looked_at = list(_looked_at(run, lock, updates))
        found = [replace(x, status="purged") if x.status == "to be purged" else x for x, _ in looked_at]
        known = {entry["where"]: entry for entry in purged(run)}
        known |= {x.where: asdict(x) for x in found if x.status == "purged"}
        write_json(layout.purge, {"at": now(), "purged": list(known.values())})  # first: what is gone must be known to be
        for _, paths in looked_at:
            _delete(layout, paths)
    return found


def purged(run: Path) -> list[dict[str, Any]]:
    """What was purged until now."""
    file = RunLayout(run).purge
    found: list[dict[str, Any]] = read_object(file, "restore it")["purged"] if file.is_file() else []
    return found


def left(run: Path, models: Collection[str]) -> list[str]:
    """Those of these models of a run whose adapters were not purged."""
    gone = {entry["where"] for entry in purged(run)}
    return [name for name in models if f"adapters/{name}" not in gone]


def _looked_at(run: Path, lock: bool, updates: bool) -> Iterator[tuple[Location, list[Path]]]:
    """Every place, with the files there; of one that is not to be purged, none."""
    layout = RunLayout(run)
    forgotten = _forgotten(layout)
    places: dict[tuple[str, str, str, str], list[Path]] = {}
    for artefact in layout.artefacts():
        where, what, status, reason = _judged(layout, artefact, forgotten, lock, updates)
        if status:
            places.setdefault((where, what, status, reason), []).append(artefact.path)
    for (where, what, status, reason), paths in places.items():
        yield Location(where, what, status, reason), paths if status == "to be purged" else []
    for phase in sorted((run / "phases").glob("*/phase.json")):
        content = phases.read_file(phase.parent)
        kept = phases.cached(content["cache"])
        if content["cache"] and forgotten.known_by(content["forgotten"]) and kept.is_dir():
            what = f"the phase {phase.parent.name}, kept for other runs"
            yield Location(f"cache/{content['cache']}", what, "to be purged"), [kept]
    for where, reason in OUTSIDE.items():
        yield Location(where, "", "kept", reason), []


def _judged(
    layout: RunLayout, artefact: Artefact, forgotten: Forgotten, lock: bool, updates: bool
) -> tuple[str, str, str, str]:
    """(where, what, status, reason) of one file; no status where it has nothing to do with what was forgotten."""
    kind, names, name = artefact.kind, artefact.names, artefact.name
    nothing = (name, "", "", "")
    if kind is None:
        return name, "no part of a run that this version knows", "unknown", "look at it, and delete it yourself"
    if not forgotten.requests:
        return nothing
    match kind.knows:
        case "phase":
            knows = forgotten.known_by(phases.read_file(layout.phase(names["phase"]))["forgotten"])
            return (name, "adapters that know it", "to be purged", "") if knows else nothing
        case "model":
            where = f"adapters/{names['model']}"
            return (where, "adapters that know it", "to be purged", "") if _model_knows(artefact, forgotten) else nothing
        case "lock":
            if names["phase"] != forgotten.last:
                return name, "an older lock", "to be purged", ""
            return name, "the forget lock", "to be purged" if lock else "kept", "" if lock else LOCK
        case "updates":
            where, what = f"phases/{names['phase']}/history/{names['client']}", f"updates of {names['client']}"
            if names["client"] in forgotten.departed or (updates and names["client"] in forgotten.partly):
                return where, what, "to be purged", ""
            return (where, what, "kept", MIXED) if names["client"] in forgotten.partly else nothing
        case "everything":
            return kind.path.partition("/{")[0], kind.what, "to be purged", ""
        case "pairs":
            has = read_object(artefact.path, "restore it, or remove it").get("scores")
            return (f"{name}: scores", "similarities of single pairs", "to be purged", "") if has else nothing
        case "numbers":
            return kind.path, kind.what, "kept", NUMBERS
        case "request":
            return kind.path, kind.what, "kept", REQUEST
        case _:
            return nothing


def _forgotten(layout: RunLayout) -> Forgotten:
    served = queue.served(layout.folder)
    facts = [phases.read_file(layout.phase(phase))["facts"] for phase, _ in served]
    departed = frozenset(c for f in facts for c in f["departed"])
    concerned = frozenset(c for f in facts for c in (*f["forget_clients"], *f["absent"]))
    last = served[-1][0] if served else ""
    return Forgotten(tuple(r for _, r in served), last, departed, concerned - departed)


def _model_knows(artefact: Artefact, forgotten: Forgotten) -> bool:
    try:
        text = (artefact.path.parent / "provenance.json").read_text(encoding="utf-8")
        return forgotten.known_by(json.loads(text)["forgotten"])
    except (OSError, ValueError, KeyError, TypeError):
        return True  # nobody can say what it has forgotten


def _delete(layout: RunLayout, paths: list[Path]) -> None:
    """Files or folders; of a phase, the list of its files is kept true; of an audit, only the scores go."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name == "audit.json":
            write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "scores": {}})
        elif (layout.folder / "phases") in path.parents:
            phase = layout.phase(path.relative_to(layout.folder).parts[1])
            phases.delete_files(phase, [path.relative_to(phase).as_posix()])
        else:
            path.unlink(missing_ok=True)
    for folder in sorted({p.parent for p in paths}, key=lambda p: -len(p.parts)):
        while layout.folder in folder.parents and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent
