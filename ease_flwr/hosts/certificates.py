"""Certificates of the server and keys of the hosts: who a federation trusts. Bytes in, bytes out; nothing is written here."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import secrets

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = ("localhost", "127.0.0.1")
DAYS = 825
"""How long certificates are good for."""


def new_authority() -> bytes:
    """A certificate authority: its key and its certificate, one PEM text. Each has a name of its own."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _common_name(f"ease_flwr federation {secrets.token_hex(4)}")
    certificate = _builder(name, name, key.public_key(), key.public_key()).sign(key, hashes.SHA384())
    return _private(key) + _pem(certificate)


def new_key() -> bytes:
    """A key of the server."""
    return _private(ec.generate_private_key(ec.SECP384R1()))


def server_certificate(authority: bytes, key: bytes, address: str) -> bytes:
    """A certificate for the server's key, for its address and loopback. Raises ValueError where a key cannot be read."""
    (issuer,) = x509.load_pem_x509_certificates(authority)
    signs, own = _load(authority), _load(key)
    names = [_general(n) for n in dict.fromkeys([address, *LOOPBACK, "::1"])]
    builder = _builder(_common_name(address), issuer.subject, own.public_key(), signs.public_key())
    builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    return _pem(builder.sign(signs, hashes.SHA384()))


def certificates(text: bytes) -> bytes:
    """The certificates in a PEM text, without the keys in it."""
    return b"".join(map(_pem, x509.load_pem_x509_certificates(text)))


def is_signed(certificate: bytes, authorities: bytes) -> bool:
    """Whether one of these authorities has signed a certificate."""
    (leaf,) = x509.load_pem_x509_certificates(certificate)
    for authority in x509.load_pem_x509_certificates(authorities):
        try:
            leaf.verify_directly_issued_by(authority)
            return True
        except (ValueError, InvalidSignature):
            continue
    return False


def fits(certificate: bytes, key: bytes) -> bool:
    """Whether a certificate is of this key."""
    (leaf,) = x509.load_pem_x509_certificates(certificate)
    return leaf.public_key() == _load(key).public_key()


def name_of(authority: bytes) -> str:
    """A name for an authority: the beginning of its certificate's sha256."""
    return hashlib.sha256(certificates(authority)).hexdigest()[:12]


def days_left(text: bytes) -> int:
    """Whole days until the last of these certificates expires; negative after that. Raises ValueError where there is none."""
    ends = [c.not_valid_after_utc for c in x509.load_pem_x509_certificates(text)]
    return (max(ends) - datetime.datetime.now(datetime.UTC)).days


def node_key() -> bytes:
    """A key by which a SuperNode shows who it is, in OpenSSH format."""
    key = ec.generate_private_key(ec.SECP384R1())
    openssh = serialization.PrivateFormat.OpenSSH
    return key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption())


def public_half(key: bytes) -> bytes:
    """The public half of a node key, as OpenSSH has it. Raises ValueError where it is no such key."""
    found = serialization.load_ssh_private_key(key, None)
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic curve key")
    return found.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"


def fingerprint(public: bytes) -> str:
    """sha256 of a public half, in the format that Flower knows it by. Raises ValueError where it is none."""
    key, spki = serialization.load_ssh_public_key(public), serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.PEM, spki)).hexdigest()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, signs: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    """A certificate for a key, to be signed by another; one that signs itself is an authority's."""
    now, is_authority = datetime.datetime.now(datetime.UTC), key == signs
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(minutes=5))
    builder = builder.not_valid_after(now + datetime.timedelta(days=DAYS))
    constraint = x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None)
    usage = x509.KeyUsage(not is_authority, False, False, False, False, is_authority, is_authority, False, False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signs)
    builder = builder.add_extension(constraint, True).add_extension(usage, True).add_extension(identifier, False)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _load(text: bytes) -> ec.EllipticCurvePrivateKey:
    """The private key in a PEM text, in which certificates may follow."""
    found = serialization.load_pem_private_key(text, None)
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic curve key")
    return found
