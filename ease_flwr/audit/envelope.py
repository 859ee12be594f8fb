"""Keys, and envelopes that they sign: an in-toto statement (v1) in a DSSE envelope, signed with Ed25519."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ease_flwr.config import ConfigError

PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:ease-flwr:erasure-receipt:2"


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
    return hashlib.sha256(raw(key)).hexdigest()


def raw(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of a public key."""
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
    if public is not None and raw(public) != raw(named):
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


def read_public(file: Path) -> Ed25519PublicKey:
    """A public key, PEM. Raises ConfigError."""
    try:
        key = serialization.load_pem_public_key(file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{file}: no public key ({error})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{file}: not an Ed25519 key")
    return key
