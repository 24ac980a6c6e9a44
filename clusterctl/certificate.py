"""A server's certificate and its private key as files on this machine, looked at before any host
is: that they are one pair, hold today, and for whom they speak."""

from __future__ import annotations

import ipaddress
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from clusterctl.errors import ConfigError
from clusterctl.secret import Secret
from clusterctl.spec import TlsSpec


def load(certificate: Path | None, key: Path | None, now: datetime) -> TlsSpec | None:
    """None where neither is given. `now` knows its time zone. Raises ConfigError naming the file
    that is wrong."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("--tls-cert and --tls-key belong together", hint="give both files")
    first = _certificate(certificate)
    key_pem = _read(key)
    _check_dates(first, certificate, now)
    _check_pair(first, certificate, key_pem, key)
    return TlsSpec(_read(certificate), Secret(key_pem), names_of(first))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not PEM", hint=_to_pem("x509 -inform der", file)) from error


def _to_pem(verb: str, file: Path) -> str:
    return f"openssl {verb} -in {file} -out {file.with_name(f'{file.stem}.plain.pem')}"


def _certificate(file: Path) -> x509.Certificate:
    """The server's own, which comes first."""
    try:
        return x509.load_pem_x509_certificates(_read(file).encode())[0]
    except ValueError as error:
        raise ConfigError(
            f"{file} holds no certificate in PEM", hint=_to_pem("x509 -inform der", file)
        ) from error


def _check_dates(certificate: x509.Certificate, file: Path, now: datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        raise ConfigError(
            f"the certificate {file} is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d} only",
            hint="have it renewed; is this machine's clock right?",
        )


def _check_pair(certificate: x509.Certificate, file: Path, key_pem: str, key_file: Path) -> None:
    try:
        key = load_pem_private_key(key_pem.encode(), password=None)
    except TypeError as error:  # what it raises for a key that wants a password
        raise ConfigError(
            f"the key {key_file} is protected by a password, and a server that begins anew after a "
            "reboot has nobody to ask",
            hint=_to_pem("pkey", key_file),
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{key_file} holds no private key in PEM") from error
    if _spelt(key.public_key()) != _spelt(certificate.public_key()):
        raise ConfigError(f"the key {key_file} is not the one of the certificate {file}")


def _spelt(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Host names and addresses that clients may call it by (RFC 6125: the common name is none)."""
    try:
        said = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = map(str, said.get_values_for_type(x509.IPAddress))
    return (*said.get_values_for_type(x509.DNSName), *addresses)


def name_for(tls: TlsSpec, address: str) -> str | None:
    """What a client that checks names calls the server at `address`: that, where the certificate
    speaks for it, else the first whole host name; None: it speaks for nobody."""
    if address in tls.names:
        return address
    hosts = (name for name in tls.names if "*" not in name and not _is_address(name))
    return next(hosts, None)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
