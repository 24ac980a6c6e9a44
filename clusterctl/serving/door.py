"""Where a deployment's API listens, and by which files it shows who it is. PURE."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from clusterctl.errors import ConfigError
from clusterctl.spec import ServeSpec

EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True)
class TlsFiles:
    """Paths in the head's container. Both engines take them under vLLM's names."""

    certificate: str
    key: str

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--ssl-certfile", self.certificate, "--ssl-keyfile", self.key)


def listens_on(serve: ServeSpec, private: str) -> str:
    """The address that the API binds: the head's `private` one, another that was asked for, or with
    `serve.expose` all of them. Raises ConfigError for one that others than the cluster's networks
    may reach, unless that is asked for in so many words."""
    if serve.expose and serve.host is None:
        return EVERYWHERE[0]
    host = serve.host or private
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise ConfigError(f"--host {host}: an IP address of the head is meant") from error
    if serve.expose or not (address.is_unspecified or address.is_global):
        return host
    what = "every address of the head" if address.is_unspecified else "a public address"
    other = f"leave --host out ({private} is used)" if serve.host else "--host with a private one"
    raise ConfigError(
        f"the API would listen on {host}, {what}",
        hint=f"{other}, and `clusterctl tunnel` brings it to this machine; or add --expose, best "
        "with --tls-cert and --tls-key",
    )


def in_the_clear(serve: ServeSpec) -> str | None:
    """What an open door without TLS means; None where there is none."""
    if not serve.expose or serve.tls is not None:
        return None
    return (
        "exposed without TLS: the API key and all that is said pass in the clear "
        "(--tls-cert FILE --tls-key FILE)"
    )
