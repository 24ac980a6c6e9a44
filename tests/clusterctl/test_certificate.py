"""Certificates and keys as users have them: real files."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from clusterctl.certificate import load, name_for
from clusterctl.errors import ConfigError
from clusterctl.secret import Secret
from clusterctl.spec import TlsSpec
from tests.certificates import Authority

NOW = datetime.now(timezone.utc)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_none_is_none() -> None:
    assert load(None, None, NOW) is None


def test_a_pair_and_whom_it_speaks_for(authority: Authority) -> None:
    pair = authority.issue("api", "api.example.com", "10.0.0.1", chain=True)
    tls = load(pair.certificate, pair.key, NOW)
    assert tls is not None
    assert tls.names == ("api.example.com", "10.0.0.1")
    assert (tls.certificate, tls.key.reveal()) == (
        pair.certificate.read_text(),
        pair.key.read_text(),
    )
    assert tls.certificate.startswith(tls.own_certificate)
    assert tls.own_certificate.count("BEGIN") == 1
    assert "PRIVATE" not in repr(tls)


def refused(certificate: Path | None, key: Path | None, now: datetime = NOW) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(certificate, key, now)
    return caught.value


def test_one_without_the_other(authority: Authority) -> None:
    pair = authority.issue("api")
    assert "belong together" in refused(pair.certificate, None).message
    assert "belong together" in refused(None, pair.key).message


def test_the_key_of_another_certificate(authority: Authority) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    assert refused(one.certificate, other.key).message == (
        f"the key {other.key} is not the one of the certificate {one.certificate}"
    )


def test_one_that_has_run_out_and_one_of_tomorrow(authority: Authority) -> None:
    old, new = authority.issue("old", days=-1), authority.issue("new")
    assert "is valid from " in refused(old.certificate, old.key).message
    assert refused(new.certificate, new.key, NOW - timedelta(days=3)).hint == (
        "have it renewed; is this machine's clock right?"
    )


def test_a_key_with_a_password_has_nobody_to_ask(authority: Authority) -> None:
    pair = authority.issue("api", password=b"sesame")
    error = refused(pair.certificate, pair.key)
    assert "protected by a password" in error.message
    plain = pair.key.with_name("api-key.plain.pem")
    assert error.hint == f"openssl pkey -in {pair.key} -out {plain}"


def test_files_that_are_something_else(authority: Authority, tmp_path: Path) -> None:
    pair, der = authority.issue("api"), tmp_path / "api.der"
    der.write_bytes(b"\x30\x82\xff\x00")
    text = tmp_path / "text"
    text.write_text("hello")
    assert "is not PEM" in refused(der, pair.key).message
    assert "holds no certificate" in refused(text, pair.key).message
    assert "holds no private key" in refused(pair.certificate, text).message
    assert "cannot read" in refused(tmp_path / "absent", pair.key).message


@pytest.mark.parametrize(
    ("names", "called"),
    [
        (("10.0.0.1", "api"), "10.0.0.1"),
        (("*.example.com", "10.0.0.9", "api"), "api"),
        (("*.example.com",), None),
        ((), None),
    ],
)
def test_what_a_client_calls_it(names: tuple[str, ...], called: str | None) -> None:
    assert name_for(TlsSpec("", Secret(""), names), "10.0.0.1") == called
