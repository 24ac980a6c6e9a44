"""Where an API may listen."""

from __future__ import annotations

import pytest

from clusterctl.errors import ConfigError
from clusterctl.secret import Secret
from clusterctl.serving.door import in_the_clear, listens_on
from clusterctl.spec import ServeSpec, TlsSpec


def asked(host: str | None = None, *, expose: bool = False, tls: bool = False) -> ServeSpec:
    files = TlsSpec("", Secret("k")) if tls else None
    return ServeSpec("/m", "m", host=host, expose=expose, tls=files)


@pytest.mark.parametrize(
    ("serve", "address"),
    [
        (asked(), "10.0.0.1"),
        (asked("127.0.0.1"), "127.0.0.1"),
        (asked("192.168.7.1"), "192.168.7.1"),
        (asked("100.64.0.9"), "100.64.0.9"),  # carrier-grade NAT and Tailscale: not global
        (asked("fd00::1"), "fd00::1"),
        (asked(expose=True), "0.0.0.0"),
        (asked("8.8.8.8", expose=True), "8.8.8.8"),
        (asked("::", expose=True), "::"),
    ],
)
def test_private_unless_exposed(serve: ServeSpec, address: str) -> None:
    assert listens_on(serve, "10.0.0.1") == address


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "8.8.8.8", "2001:4860:4860::8888"])
def test_an_open_door_is_refused(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listens_on(asked(host), "10.0.0.1")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("leave --host out (10.0.0.1 is used), and `clusterctl tun")
    assert "--expose" in caught.value.hint


def test_a_head_with_a_public_address_alone() -> None:
    with pytest.raises(ConfigError, match=r"listen on 8\.8\.8\.8, a public address") as caught:
        listens_on(asked(), "8.8.8.8")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("--host with a private one")


@pytest.mark.parametrize(("expose", "tls"), [(False, False), (False, True), (True, True)])
def test_only_an_open_door_without_tls_is_warned_of(expose: bool, tls: bool) -> None:
    assert in_the_clear(asked(expose=expose, tls=tls)) is None
    assert "in the clear" in (in_the_clear(asked(expose=True)) or "")
