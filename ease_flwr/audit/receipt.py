"""Receipts of erasure: what was asked, what was done, what is left, signed and chained.

The subjects of a receipt are the files of the run with their sha256; its predicate says the rest. Receipts lie in RUN/receipts
and are chained by hash in RUN/ledger.jsonl, a line each; receipt.json is the last of them. A signature shows who made a receipt
and that nothing was changed since. It does not show that training left something out: parameters alone cannot.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ease_flwr.audit import envelope
from ease_flwr.audit.summary import current_audit, read_results
from ease_flwr.config import ConfigError, ForgetRequest, ModelConfig, code_hash, file_sha256, weights_sha256
from ease_flwr.config.request import now
from ease_flwr.store import phases, purge, queue
from ease_flwr.store.files import read_object, write_text
from ease_flwr.store.layout import RunLayout

NOT_SHOWN = (
    "That training left the forgotten data out: parameters alone cannot prove it, and this receipt rests on the honesty of "
    "whoever ran the code it names. That no copy exists elsewhere. That an attack which the audit did not try would fail."
)

NO_REFERENCE = (
    "How the model would be if it had never seen the forgotten data: no reference was trained again without them, so the audit "
    "sets it beside pairs that nobody trained on."
)


def make(run: Path, key_file: Path) -> Path:
    """Write the next receipt of a run and its line of the ledger; returns receipt.json. Raises ConfigError."""
    key = envelope.read_key(key_file)
    signer = key.public_key()
    results = read_results(run)
    ledger = read_ledger(run)
    number = len(ledger) + 1
    statement = {
        "_type": envelope.STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": file_sha256(run / name)}} for name in RunLayout(run).sealed()],
        "predicateType": envelope.PREDICATE,
        "predicate": {
            **predicate(run, results),
            "made": now(),
            "number": number,
            "previous": ledger[-1]["line_sha256"] if ledger else "",
            "signer": {"public_key": envelope.raw(signer).hex(), "keyid": envelope.key_id(signer)},
        },
    }
    file = run / "receipts" / f"{number:04d}.json"
    file.parent.mkdir(exist_ok=True)
    text = envelope.seal(statement, key)
    write_text(file, text)
    with (run / "ledger.jsonl").open("a", encoding="utf-8") as f:
        f.write(line(statement, file) + "\n")
    write_text(run / "receipt.json", text)
    return run / "receipt.json"


def predicate(run: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What a receipt says, but for number, time and signer. Raises ConfigError where nothing was forgotten yet."""
    requests = _requests(run)
    if not requests:
        raise ConfigError(f"{run}: nothing was forgotten there, so there is nothing to give a receipt for")
    experiment = read_object(RunLayout(run).experiment, "restore it")
    model = ModelConfig(**experiment["model"])
    audit, found = current_audit(run, results)
    residual = {x["where"]: x for x in (*purge.purged(run), *map(asdict, purge.residual(run)))}  # what is there, is not purged
    return {
        "requests": requests,
        "set_aside": [_told(run, s.request) | {"why": s.why, "at": s.at} for s in queue.read_set_aside(run)],
        "adapters": results["adapters_sha256"],
        "roster": sorted(results["clients"].get("unlearned", {})),
        "code": {"run": experiment.get("code", ""), "receipt": code_hash()},
        "config": file_sha256(RunLayout(run).experiment),
        "base_model": {**{k: experiment["model"][k] for k in ("name", "weights")}, "sha256": weights_sha256(model)},
        "audit": {
            "file": audit.relative_to(run).as_posix() if audit else "",
            "level": found.get("level", "none"),
            "made": found.get("at", ""),
            "reference": found.get("reference", {}).get("unlearned", []),
            "limits": experiment["audit"],
            "verdict": found.get("verdict", []),
        },
        "residual": list(residual.values()),
        "not_shown": NOT_SHOWN + ("" if "retrain" in results["adapters_sha256"] else f" {NO_REFERENCE}"),
    }


def _requests(run: Path) -> list[dict[str, Any]]:
    """All requests of the queue, done or not."""
    out = []
    done = {request.id: phase for phase, request in queue.served(run)}
    for request in queue.requests(queue.read(run)):
        made = {"at": "", "code": ""}
        if request.id in done:
            made = phases.read_file(RunLayout(run).phase(done[request.id]))
        out.append(_told(run, request) | {"done": made["at"], "code": made["code"]})
    return out


def _told(run: Path, request: ForgetRequest) -> dict[str, Any]:
    """What was asked; single pairs as salted digests."""
    targets = list(request.targets)
    if request.scenario == "sample":
        salt = _salt(run)
        targets = [hashlib.sha256(f"{salt}{t}".encode()).hexdigest() for t in targets]
    asked = {"id": request.id, "asked": request.received, "scenario": request.scenario}
    return {**asked, "targets": targets, "strategy": request.strategy}


def _salt(run: Path) -> str:
    """Kept with the run, mode 0600, so that its owner can show which pairs a receipt means, and nobody can guess them."""
    file = run / "receipt-salt"
    if not file.is_file():
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            f.write(secrets.token_hex(16))
    return file.read_text(encoding="utf-8")


# ---- the chain -----------------------------------------------------------------------------------------------------------


def line(statement: dict[str, Any], file: Path) -> str:
    """The ledger's line about a receipt: all of it follows from the receipt and the line before."""
    predicate = statement["predicate"]
    entry = {"number": predicate["number"], "made": predicate["made"], "receipt": f"receipts/{file.name}"}
    return json.dumps({**entry, "sha256": file_sha256(file), "previous": predicate["previous"]})


def read_ledger(run: Path) -> list[dict[str, Any]]:
    """Its lines, with the sha256 of each. Raises ConfigError."""
    file = run / "ledger.jsonl"
    if not file.is_file():
        return []
    out = []
    for number, written in enumerate(file.read_bytes().splitlines(), 1):
        try:
            text = written.decode()
            out.append({**json.loads(text), "text": text, "line_sha256": hashlib.sha256(written).hexdigest()})
        except (ValueError, TypeError):
            raise ConfigError(f"{file}: line {number} is not JSON: it was changed") from None
    return out


def verify(path: Path, public_file: Path | None = None) -> list[str]:
    """Recompute every digest and signature of a run's receipts (or of one receipt file alone); returns what was found good.

    Raises ConfigError that names the first thing that does not match, or is no part of a run.
    """
    public = envelope.read_public(public_file) if public_file else None
    if path.is_file():
        signer = envelope.opened(path, public)["predicate"]["signer"]["keyid"][:16]
        return [f"{path.name}: good signature of {signer}; files of the run not looked at"]
    ledger = read_ledger(path)
    if not ledger:
        raise ConfigError(f"{path}: no ledger.jsonl there, so no receipt was made")
    statement = _unbroken(path, ledger, public)
    made = statement["predicate"]["made"]
    named = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
    for name, expected in named.items():
        if not (path / name).is_file():
            raise ConfigError(f"{path / name} is missing: the receipt names it")
        if file_sha256(path / name) != expected:
            raise ConfigError(f"{path / name} was changed since the receipt of {made}")
    if more := sorted(set(RunLayout(path).sealed()) - set(named)):
        raise ConfigError(f"{path / more[0]} came after the receipt of {made}: make a new one")
    if unknown := RunLayout(path).unknown():
        raise ConfigError(f"{path / unknown[0]} is no part of a run that this version knows: look at it, and move it elsewhere")
    code = "as installed here" if statement["predicate"]["code"]["receipt"] == code_hash() else "other than installed here"
    signer = statement["predicate"]["signer"]["keyid"][:16]
    return [f"{len(ledger)} receipts in an unbroken chain, signed by {signer}", f"{len(named)} files as they were; code {code}"]


def _unbroken(path: Path, ledger: list[dict[str, Any]], public: Any) -> dict[str, Any]:
    """The statement of the last receipt. Raises ConfigError where the chain of receipts and the ledger do not fit."""
    previous, statement = "", dict[str, Any]()
    for number, entry in enumerate(ledger, 1):
        file = path / "receipts" / f"{number:04d}.json"
        statement = envelope.opened(file, public)
        predicate = statement["predicate"]
        if predicate["number"] != number or predicate["previous"] != previous:
            raise ConfigError(f"{file}: does not follow the receipt before it")
        if entry["text"] != line(statement, file):
            raise ConfigError(f"{path}/ledger.jsonl: line {number} does not fit {file.name}")
        previous = entry["line_sha256"]
    if not (path / "ledger.jsonl").read_text(encoding="utf-8") == "".join(f"{e['text']}\n" for e in ledger):
        raise ConfigError(f"{path}/ledger.jsonl: was changed between its lines")
    extra = len(list((path / "receipts").glob("*.json"))) - len(ledger)
    if extra:
        raise ConfigError(f"{path}/receipts: {abs(extra)} receipts more than the ledger has lines")
    last = path / "receipts" / f"{len(ledger):04d}.json"
    if not (path / "receipt.json").is_file() or (path / "receipt.json").read_bytes() != last.read_bytes():
        raise ConfigError(f"{path}/receipt.json is not the last receipt of the ledger")
    return statement
