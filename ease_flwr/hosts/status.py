"""`ease status`: what of a federation needs a person, from the files of its runs and, where it is asked, from its SuperLink.

Nothing is locked and nothing is sent to a client. The schema of `--json` is in docs/operations.md.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ease_flwr import config
from ease_flwr.config import ConfigError, Experiment, ForgetRequest
from ease_flwr.config.request import now
from ease_flwr.hosts.connected import Certificate, Node, certificates, nodes
from ease_flwr.store import clients as known
from ease_flwr.store import queue
from ease_flwr.store.layout import RunLayout, no_run

SCHEMA = 1
AT_WORK = ("submitted", "running")
DAYS = 30
"""A certificate with fewer days is to be replaced."""
DISK = 0.05
"""Share of a file system that must be free."""
PATIENCE = 2
"""A client is asked twice: after so many deadlines without a word a run may have been killed."""
Situation = Callable[[Path], dict[str, Any]]
"""Where a run is, as of ease_flwr/following.py."""


@dataclass(frozen=True)
class Federation:
    """What a SuperLink says; without one, nothing is known of who is connected."""

    superlink: str = ""
    nodes: Sequence[Node] = ()
    certificates: Sequence[Certificate] = ()


def ask(superlink: str) -> Federation:
    """Ask a SuperLink; "" is none. Raises ConfigError where it does not answer."""
    return Federation(superlink, nodes(superlink), certificates(superlink)) if superlink else Federation()


def of_run(run: Path, federation: Federation, situation: Situation) -> dict[str, Any]:
    """All that is known of a run, as JSON, with what needs a person in `attention`. Raises ConfigError."""
    found, needs = _facts(run, federation, situation)
    return _whole({"run": found, "disk": _disk(run)}, federation, needs)


def _facts(run: Path, federation: Federation, situation: Situation) -> tuple[dict[str, Any], list[str]]:
    """What is known of a run, and what of it needs a person."""
    settings = _experiment(run)
    steps, where = queue.read(run), situation(run)
    served = [r for _, r in queue.served(run)]
    departed = {c for r in served for c in r.leaving}
    leaving = departed | {c for r in queue.requests(steps) for c in r.leaving}
    told = {name: client.model_dump() for name, client in known.read(run).items()}
    names = sorted({*settings.data.client_names, *told})
    clients = [_client(n, told.get(n, {}), federation, n not in leaving, n in departed) for n in names]
    found = {
        "folder": str(run),
        "experiment": settings.name,
        "status": where["status"],
        "error": where["error"],
        "phase": _at_hand(run, steps, where["status"]),
        "round": where["round"],
        "silent": round(where["silent"]),
        "queue": [*_queue(run, steps, where["status"]), *map(_set_aside, queue.read_set_aside(run))],
        "clients": clients,
    }
    return found, list(_needs(found, PATIENCE * settings.federation.deadline, federation))


def of_all(home: Path, federation: Federation, situation: Situation) -> dict[str, Any]:
    """The same of every run below a folder, without their requests and clients, and what each of them needs."""
    runs, needs, wanted = [], [], dict[str, bool]()
    for folder in sorted(f.parent for f in home.glob("*/experiment.json")) if home.is_dir() else ():
        try:
            run, lines = _facts(folder, Federation(), situation)
        except ConfigError as error:
            needs.append(str(error))
            continue
        states = [step["state"] for step in run["queue"]]
        brief = {k: run[k] for k in ("folder", "experiment", "status", "error", "phase", "round")}
        runs.append(brief | {"steps": {s: states.count(s) for s in STATES}})
        wanted |= {c["name"]: True for c in run["clients"] if c["expected"]}
        needs += [f"{folder.name}: {line}" for line in lines]
    needs += [f"{n.name} is offline since {n.since or 'ever'}" for n in federation.nodes if not n.online and n.name in wanted]
    return _whole({"home": str(home), "runs": runs, "disk": _disk(home)}, federation, needs)


STATES = ("done", "at hand", "waiting", "set aside")
"""Of a step of a queue, or of a request that was one."""


def _whole(found: dict[str, Any], federation: Federation, needs: list[str]) -> dict[str, Any]:
    disk = found["disk"]
    for certificate in federation.certificates:
        if certificate.days < DAYS:
            how = f"expires in {certificate.days} days" if certificate.days >= 0 else "has expired"
            command = "rotate-ca" if certificate.file.endswith("ca.crt") else "renew"
            needs.append(f"{certificate.file} {how}: `ease deploy {command}`")
    if disk["free"] < DISK * disk["total"]:
        needs.append(f"{disk['path']}: {disk['free'] / disk['total']:.0%} of the disk is free: make room")
    return {
        "schema": SCHEMA,
        "at": now(),
        "code": config.code_hash(),
        "ok": not needs,
        "attention": needs,
        "superlink": federation.superlink,
        "nodes": [asdict(n) for n in federation.nodes],
        "certificates": [asdict(c) for c in federation.certificates],
        **found,
    }


def _needs(run: dict[str, Any], silence: float, federation: Federation) -> Iterator[str]:
    """What of a run needs a person. silence: seconds without a word that are too many.

    A request that somebody has withdrawn, or asked again since it was set aside, needs nobody.
    """
    asked_again = {step["request"] for step in run["queue"] if step["state"] != "set aside"}
    go_on = f"`ease resume {run['folder']}`" + (f" with --superlink {federation.superlink}" if federation.superlink else "")
    if run["status"] == "failed":
        yield f"the run has failed: {run['error']}: {go_on} goes on"
    if run["silent"] > silence:
        yield f"no word for {run['silent'] / 60:.0f} minutes: if it was killed, {go_on} goes on"
    for step in run["queue"]:
        if step["state"] == "set aside" and step["why"] != queue.WITHDRAWN and step["request"] not in asked_again:
            yield f"request {step['request']} ({step['asked']}) is set aside: {step['why']}"
    for client in run["clients"]:
        if federation.superlink and client["expected"] and not client["online"]:
            yield f"{client['name']} is offline" + (f" since {client['since']}" if client["since"] else ", not registered")


def _client(name: str, told: dict[str, Any], federation: Federation, expected: bool, departed: bool) -> dict[str, Any]:
    """One client of a run. Where a name was registered twice (a lost key was replaced), the node that is online counts."""
    there = sorted((n for n in federation.nodes if n.name == name), key=lambda n: (n.online, n.since))
    node = there[-1] if there else None
    return {
        "name": name,
        "expected": expected,
        "departed": departed,
        "online": node.online if node else None if not federation.superlink else False,
        "since": node.since if node else "",
        "node": node.node if node else told.get("node", ""),
        "key": node.key if node else told.get("key", ""),
        **{k: told.get(k, "") for k in ("code", "base", "first", "last")},
        "pairs": told.get("pairs"),
        "same_code": told["code"] == config.code_hash() if told.get("code") else None,
    }


def _queue(run: Path, steps: Sequence[queue.Step], status: str) -> list[dict[str, Any]]:
    """Every step with its state, as one of STATES."""
    at_hand = _at_hand(run, steps, status)
    found = []
    for name, step in zip(queue.names(steps), steps, strict=True):
        state = "done" if RunLayout(run).done(name) else "at hand" if name == at_hand else "waiting"
        entry = {"phase": name, "state": state, "request": "", "asked": "", "received": "", "why": ""}
        if step.request:
            entry |= {"request": step.request.id, "asked": asked(step.request), "received": step.request.received}
        found.append(entry)
    return found


def _set_aside(entry: queue.SetAside) -> dict[str, Any]:
    asks = {"request": entry.request.id, "asked": asked(entry.request), "received": entry.request.received}
    return {"phase": "", "state": "set aside", **asks, "why": entry.why}


def asked(request: ForgetRequest) -> str:
    """What a request asks: clients by name, labels and pairs by their number, as monitoring may keep it."""
    if request.scenario == "client":
        return "client " + ", ".join(request.targets)
    return f"{len(request.targets)} {'label' if request.scenario == 'class' else 'entries of pairs'}"


def _at_hand(run: Path, steps: Sequence[queue.Step], status: str) -> str:
    """The phase at hand of a run at work; "" where it is not, or judges at its end."""
    left = [n for n in queue.names(steps) if not RunLayout(run).done(n)]
    return left[0] if left and status in AT_WORK else ""


def _disk(folder: Path) -> dict[str, Any]:
    there = next(f for f in (folder, *folder.parents) if f.exists())
    found = shutil.disk_usage(there)
    return {"path": str(there), "free": found.free, "total": found.total}


def _experiment(run: Path) -> Experiment:
    """Of a run, with what has changed since it began. Raises ConfigError."""
    file = RunLayout(run).run_config
    try:
        return config.from_run_config(json.loads(file.read_text(encoding="utf-8")))[0]
    except FileNotFoundError:
        raise no_run(run) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: {error}: restore it") from None
