"""Certificates of the server and keys of the hosts: who a federation trusts."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = ("localhost", "127.0.0.1")
DAYS = 825
"""How long certificates are good for."""


def certify(folder: Path, address: str) -> None:
    """Write a certificate authority to ca/, and a certificate of the server, for its address and loopback, to server/."""
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    now = datetime.datetime.now(datetime.UTC)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ease_flwr federation")])
    names = [_general(n) for n in dict.fromkeys([address, *LOOPBACK])]

    def build(subject: x509.Name, key: ec.EllipticCurvePrivateKey, is_authority: bool) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(minutes=5))
        builder = builder.not_valid_after(now + datetime.timedelta(days=DAYS))
        constraint = x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None)
        usage = x509.KeyUsage(not is_authority, False, False, False, False, is_authority, is_authority, False, False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
        builder = builder.add_extension(constraint, True).add_extension(usage, True).add_extension(identifier, False)
        return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)

    root = build(issuer, authority, True).sign(authority, hashes.SHA384())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    leaf = build(subject, server, False).add_extension(x509.SubjectAlternativeName(names), False)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    (folder / "ca").mkdir()
    for file, key in ((folder / "ca" / "ca.key", authority), (folder / "server" / "server.key", server)):
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _secret(file, pem)
    for file, certificate in (
        (folder / "ca" / "ca.crt", root),
        (folder / "server" / "ca.crt", root),
        (folder / "server" / "server.pem", leaf.sign(authority, hashes.SHA384())),
    ):
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def node_key(file: Path) -> None:
    """A key by which a SuperNode shows who it is, in OpenSSH format, and its public half beside it."""
    key = ec.generate_private_key(ec.SECP384R1())
    openssh = serialization.PrivateFormat.OpenSSH
    _secret(file, key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption()))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    file.with_name(file.name + ".pub").write_bytes(public + b"\n")


def _secret(file: Path, content: bytes) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
        f.write(content)
