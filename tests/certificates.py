"""Certificates of an authority of our own, made for a test."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


class Authority:
    """Writes files to `directory`; its own certificate is `ca`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("Test Authority")
        made = _signed(self._name, self._name, self._key.public_key(), self._key, DAY, None, True)
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(made.public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str,
        *hosts: str,
        days: int = 1,
        password: bytes | None = None,
        chain: bool = False,
    ) -> Pair:
        """For these host names and addresses. `days` below zero: it has run out."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _signed(
            _name(name), self._name, key.public_key(), self._key, days * DAY, hosts, False
        )
        pair = Pair(self.directory / f"{name}.pem", self.directory / f"{name}-key.pem")
        issuer = self.ca.read_bytes() if chain else b""
        pair.certificate.write_bytes(made.public_bytes(Encoding.PEM) + issuer)
        hidden: KeySerializationEncryption = (
            BestAvailableEncryption(password) if password else NoEncryption()
        )
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden))
        return pair


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    by: ec.EllipticCurvePrivateKey,
    lasts: timedelta,
    hosts: tuple[str, ...] | None,
    is_authority: bool,
) -> x509.Certificate:
    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + min(lasts, timedelta()) - DAY)
        .not_valid_after(now + lasts)
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
        )
    )
    if is_authority:
        signs = {"key_cert_sign": True, "crl_sign": True}
        others = dict.fromkeys(_USAGES, False)
        builder = builder.add_extension(x509.KeyUsage(**others, **signs), critical=True)
    if hosts:
        names = x509.SubjectAlternativeName([_general(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(by, hashes.SHA256())


_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "encipher_only", "decipher_only"),
)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
