"""Receipts of erasure: what was asked, what was done, what is left, signed and chained.

A receipt is an in-toto statement (v1) in a DSSE envelope, signed with Ed25519. Its subjects are the files of the run with their
sha256; its predicate says the rest. Receipts lie in RUN/receipts and are chained by hash in RUN/ledger.jsonl, a line each;
receipt.json is the last of them. A signature shows who made a receipt and that nothing was changed since. It does not show that
training left something out: parameters alone cannot.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ease_flwr.audit.summary import read_results
from ease_flwr.core import agenda, purge
from ease_flwr.core.config import ConfigError, ModelConfig, code_hash, weights_sha256
from ease_flwr.core.paths import write_text
from ease_flwr.core.run import file_sha256, read_phase_file

PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:ease-flwr:erasure-receipt:1"
NOT_SHOWN = (
    "That training left the forgotten data out: parameters alone cannot prove it, and this receipt rests on the honesty of "
    "whoever ran the code it names. That no copy exists elsewhere. That an attack which the audit did not try would fail."
)
SUBJECTS = ("experiment.json", "agenda.json", "results.json", "audit.json", "audit-full/audit.json", "ulira.json", "purge.json")


# ---- keys and envelopes -----------------------------------------------------------------------------------------------


def keygen(file: Path) -> Path:
    """A new private key (PEM, mode 0600) and beside it the public one, .pub; returns the latter. Raises ConfigError."""
    public = file.with_suffix(".pub")
    if file.exists() or public.exists():
        raise ConfigError(f"{file} is there already: a key is never overwritten")
    key = Ed25519PrivateKey.generate()
    file.parent.mkdir(parents=True, exist_ok=True)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
        f.write(pem)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return public


def read_key(file: Path) -> Ed25519PrivateKey:
    """Raises ConfigError where there is none, or others could read it."""
    try:
        if file.stat().st_mode & 0o077:
            raise ConfigError(f"{file} can be read by others: chmod 600 {file}")
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file}: no private key ({error}): make one with `ease receipt keygen --key {file}`") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{file}: not an Ed25519 key")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """sha256 of the raw public key, 64 hex digits."""
    return hashlib.sha256(_raw(key)).hexdigest()


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def encoding(payload: bytes) -> bytes:
    """What DSSE signs: the pre-authentication encoding of the payload."""
    return b" ".join([b"DSSEv1", str(len(PAYLOAD)).encode(), PAYLOAD.encode(), str(len(payload)).encode(), payload])


def seal(statement: dict[str, Any], key: Ed25519PrivateKey) -> str:
    """The envelope as JSON text."""
    payload = json.dumps(statement, sort_keys=True).encode()
    signature = {"keyid": key_id(key.public_key()), "sig": base64.b64encode(key.sign(encoding(payload))).decode()}
    envelope = {"payloadType": PAYLOAD, "payload": base64.b64encode(payload).decode(), "signatures": [signature]}
    return json.dumps(envelope, indent=1) + "\n"


def opened(file: Path, public: Ed25519PublicKey | None = None) -> dict[str, Any]:
    """The statement of an envelope whose signature is good. public: whose it must be; None: of the key it names itself.

    Raises ConfigError.
    """
    try:
        envelope = json.loads(file.read_text(encoding="utf-8"))
        payload = base64.b64decode(envelope["payload"], validate=True)
        (signed,) = envelope["signatures"]
        signature = base64.b64decode(signed["sig"], validate=True)
        statement: dict[str, Any] = json.loads(payload)
        named = Ed25519PublicKey.from_public_bytes(bytes.fromhex(statement["predicate"]["signer"]["public_key"]))
        if envelope["payloadType"] != PAYLOAD or statement["_type"] != STATEMENT or statement["predicateType"] != PREDICATE:
            raise ConfigError(f"{file}: not a receipt of erasure of this kind")
        canonical = seal_again(statement, signed)
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file}: not a receipt: {type(error).__name__} {' '.join(str(error).split())[:100]}") from None
    if public is not None and _raw(public) != _raw(named):
        raise ConfigError(f"{file}: signed with key {key_id(named)[:16]}, not with the expected {key_id(public)[:16]}")
    try:
        named.verify(signature, encoding(payload))
    except InvalidSignature:
        raise ConfigError(f"{file}: the signature does not fit the content") from None
    if signed.get("keyid") != key_id(named) or file.read_text(encoding="utf-8") != canonical:
        raise ConfigError(f"{file}: the envelope was changed around its signed content")
    return statement


def seal_again(statement: dict[str, Any], signed: dict[str, Any]) -> str:
    """The text of the envelope as `seal` writes it, for this statement and signature."""
    payload = base64.b64encode(json.dumps(statement, sort_keys=True).encode()).decode()
    return json.dumps({"payloadType": PAYLOAD, "payload": payload, "signatures": [signed]}, indent=1) + "\n"


# ---- what a receipt says ------------------------------------------------------------------------------------------------


def make(run: Path, key_file: Path) -> Path:
    """Write the next receipt of a run and its line of the ledger; returns receipt.json. Raises ConfigError."""
    key = read_key(key_file)
    results = read_results(run)
    ledger = read_ledger(run)
    number = len(ledger) + 1
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": file_sha256(run / name)}} for name in subjects(run)],
        "predicateType": PREDICATE,
        "predicate": {
            **told(run, results),
            "made": agenda.now(),
            "number": number,
            "previous": ledger[-1]["line_sha256"] if ledger else "",
            "signer": {"public_key": _raw(key.public_key()).hex(), "keyid": key_id(key.public_key())},
        },
    }
    file = run / "receipts" / f"{number:04d}.json"
    file.parent.mkdir(exist_ok=True)
    text = seal(statement, key)
    write_text(file, text)
    with (run / "ledger.jsonl").open("a", encoding="utf-8") as f:
        f.write(line(statement, file) + "\n")
    write_text(run / "receipt.json", text)
    return run / "receipt.json"


def subjects(run: Path) -> list[str]:
    """Files of a run that a receipt pins, relative to it."""
    chosen = [run / name for name in SUBJECTS] + sorted((run / "adapters").glob("*/adapter_*"))
    chosen += sorted((run / "phases").glob("*/phase.json")) + sorted((run / "phases").glob("*/*.safetensors"))
    return [p.relative_to(run).as_posix() for p in chosen if p.is_file()]


def told(run: Path, results: dict[str, Any]) -> dict[str, Any]:
    """The predicate, but for number, time and signer."""
    steps = agenda.read(run)
    salt = _salt(run)
    requests = []
    for i, step in enumerate([s for s in steps if s.kind == "forget" and s.forget], 1):
        assert step.forget is not None
        targets = list(step.forget.targets)
        if step.forget.scenario == "sample":
            targets = [hashlib.sha256(f"{salt}{t}".encode()).hexdigest() for t in targets]
        phase = run / "phases" / ("forget" if i == 1 else f"forget-{i}")
        phase_file = read_phase_file(phase) if phase.is_dir() else {"at": "", "code": ""}
        entry = {"id": step.id, "asked": step.asked, "done": phase_file["at"], "code": phase_file["code"]}
        entry |= {"scenario": step.forget.scenario, "targets": targets}
        requests.append({**entry, "strategy": step.strategy})
    if not requests:
        raise ConfigError(f"{run}: nothing was forgotten there, so there is nothing to give a receipt for")
    experiment = json.loads((run / "experiment.json").read_text(encoding="utf-8"))
    model = ModelConfig(**experiment["model"])
    full = run / "audit-full" / "audit.json"
    audit = full if full.is_file() else run / "audit.json"
    found = json.loads(audit.read_text(encoding="utf-8")) if audit.is_file() else {"level": "none", "verdict": []}
    residual = [*purge.purged(run), *({**x.__dict__} for x in purge.residual(run))]
    return {
        "requests": requests,
        "adapters": results["adapters_sha256"],
        "roster": sorted(results["clients"].get("unlearned", {})),
        "code": {"run": experiment.get("code", ""), "receipt": code_hash()},
        "config": file_sha256(run / "experiment.json"),
        "base_model": {**{k: experiment["model"][k] for k in ("name", "weights")}, "sha256": weights_sha256(model)},
        "audit": {"level": found["level"], "limits": experiment["audit"], "verdict": found["verdict"]},
        "residual": residual,
        "not_shown": NOT_SHOWN,
    }


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
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(text)
            out.append({**entry, "text": text, "line_sha256": hashlib.sha256(text.encode()).hexdigest()})
        except (ValueError, TypeError):
            raise ConfigError(f"{file}: line {number} is not JSON: it was changed") from None
    return out


def verify(path: Path, public_file: Path | None = None) -> list[str]:
    """Recompute every digest and signature of a run's receipts (or of one receipt file alone); returns what was found good.

    Raises ConfigError that names the first thing that does not match.
    """
    public = _read_public(public_file) if public_file else None
    if path.is_file():
        statement = opened(path, public)
        return [
            f"{path.name}: good signature of {statement['predicate']['signer']['keyid'][:16]}; files of the run not looked at"
        ]
    ledger = read_ledger(path)
    if not ledger:
        raise ConfigError(f"{path}: no ledger.jsonl there, so no receipt was made")
    previous, statement = "", {}
    for number, entry in enumerate(ledger, 1):
        file = path / "receipts" / f"{number:04d}.json"
        statement = opened(file, public)
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
    named = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
    for name, expected in named.items():
        if not (path / name).is_file():
            raise ConfigError(f"{path / name} is missing: the receipt names it")
        if file_sha256(path / name) != expected:
            raise ConfigError(f"{path / name} was changed since the receipt of {statement['predicate']['made']}")
    if more := sorted(set(subjects(path)) - set(named)):
        raise ConfigError(f"{path / more[0]} came after the receipt of {statement['predicate']['made']}: make a new one")
    code = "as installed here" if statement["predicate"]["code"]["receipt"] == code_hash() else "other than installed here"
    signer = statement["predicate"]["signer"]["keyid"][:16]
    return [f"{len(ledger)} receipts in an unbroken chain, signed by {signer}", f"{len(named)} files as they were; code {code}"]


def _read_public(file: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{file}: no public key ({error})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{file}: not an Ed25519 key")
    return key
