"""One connection to one sshd: the road there, the handshake, the host key, the login."""

from __future__ import annotations

import logging
import random
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import paramiko

from clusterctl.errors import Unreachable
from clusterctl.transport import hostkeys
from clusterctl.transport.hostkeys import HostKey, Judgement
from clusterctl.transport.sshauth import log_in
from clusterctl.transport.sshconfig import SshTarget

# sshd drops connections from MaxStartups (10:30:100) on while others have not logged in yet.
HANDSHAKE_ATTEMPTS = 8
LONGEST_PAUSE_S = 2.0

# paramiko logs whole tracebacks of what it also raises.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

Channelish = socket.socket | paramiko.Channel
Road = Callable[[], Channelish]


@dataclass(frozen=True)
class Connection:
    """A paramiko Transport that is logged in, and what it was made with."""

    transport: paramiko.Transport
    target: SshTarget


def connect(
    target: SshTarget, host: str, *, timeout: float, accept_new: bool, road: Road
) -> Connection:
    """Shake hands, know the host, log in. Raises Unreachable naming host, user, address, keys."""
    known = hostkeys.load(target.known_hosts)
    transport = _handshake(target, host, timeout, _types_on_record(known, target), road)
    try:
        _verify(transport, known, target, host, accept_new=accept_new)
        transport.auth_timeout = timeout
        log_in(transport, target, host)
    except (paramiko.SSHException, EOFError, OSError) as error:
        transport.close()
        raise Unreachable(f"{target.where} broke off the login: {error}", host=host) from error
    except BaseException:
        transport.close()
        raise
    return Connection(transport, target)


# --- the road there


def direct(target: SshTarget, host: str, timeout: float) -> socket.socket:
    try:
        road = socket.create_connection((target.hostname, target.port), timeout)
    except OSError as error:
        raise _no_road(target, error, host, timeout) from error
    road.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small requests, each waited for
    return road


def _no_road(target: SshTarget, error: OSError, host: str, timeout: float) -> Unreachable:
    if isinstance(error, socket.gaierror):
        return Unreachable(
            f"the name {target.hostname!r} does not resolve",
            host=host,
            hint="check the spelling, or give the host's IP as its `address`",
            cause="hostname-unresolved",
        )
    if isinstance(error, TimeoutError):
        return Unreachable(
            f"{target.where} did not answer within {timeout:g} s",
            host=host,
            hint=f"the host is down, or a firewall drops TCP port {target.port}: `ping "
            f"{target.hostname}` tells which",
            cause="ssh-timeout-host-down",
        )
    if isinstance(error, ConnectionRefusedError):
        return Unreachable(
            f"nothing listens at {target.hostname}:{target.port}",
            host=host,
            hint="`sudo systemctl start ssh` there, or give the `port` where its sshd listens",
            cause="ssh-refused",
        )
    return Unreachable(
        f"{target.where} cannot be reached: {error.strerror or error}",
        host=host,
        hint=f"is the host up, and in a network that leads there? `ping {target.hostname}`",
        cause="ssh-timeout-host-down",
    )


def through(jump: Connection, target: SshTarget, host: str, timeout: float) -> paramiko.Channel:
    """A channel of the jump host's connection that ends at the target's sshd."""
    try:
        return jump.transport.open_channel(
            "direct-tcpip", (target.hostname, target.port), ("127.0.0.1", 0), timeout=timeout
        )
    except (paramiko.SSHException, EOFError) as error:
        raise Unreachable(
            f"jump host {jump.target.where} cannot reach {target.hostname}:{target.port}: {error}",
            host=host,
        ) from error


def by_command(command: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """ProxyCommand: a process whose stdin and stdout are the connection. It ends with it."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    return ours, process


# --- the handshake


def _handshake(
    target: SshTarget, host: str, timeout: float, key_types: Sequence[str], road: Road
) -> paramiko.Transport:
    """Until sshd has shown its key. A connection dropped before that is tried again, later each
    time: that is how sshd says that too many are logging in at once."""
    for attempt in range(1, HANDSHAKE_ATTEMPTS + 1):
        transport = paramiko.Transport(road())
        transport.banner_timeout = transport.handshake_timeout = 2 * timeout  # ours comes first
        _prefer(transport, key_types)
        try:
            transport.start_client(timeout=timeout)
            _raise_if_unfinished(transport, timeout)
            return transport
        except (paramiko.SSHException, EOFError, OSError) as error:
            transport.close()
            if attempt == HANDSHAKE_ATTEMPTS or not _dropped_early(transport, error):
                raise Unreachable(
                    f"{target.where} did not complete the SSH handshake: {error or 'dropped'}",
                    host=host,
                    hint="sshd drops connections beyond its MaxStartups; see its log",
                ) from error
        time.sleep(random.uniform(0.5, 1.0) * min(0.1 * 2**attempt, LONGEST_PAUSE_S))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _raise_if_unfinished(transport: paramiko.Transport, timeout: float) -> None:
    """paramiko's start_client returns in silence when its time is over."""
    if not transport.initial_kex_done:
        raise TimeoutError(f"no answer within {timeout:g} s")


def _dropped_early(transport: paramiko.Transport, error: Exception) -> bool:
    return not transport.remote_version and not isinstance(error, TimeoutError)


# --- the host key


_RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")


def _types_on_record(known: Sequence[hostkeys.KnownHost], target: SshTarget) -> list[str]:
    types = hostkeys.key_types(known, *_known_as(target))
    return [*types, *(_RSA_SIGNATURES if "ssh-rsa" in types else ())]


def _prefer(transport: paramiko.Transport, types: Sequence[str]) -> None:
    """Ask first for a key of a type on record: another could not be compared with it."""
    options = transport.get_security_options()
    options.key_types = sorted(options.key_types, key=lambda name: name not in types)


def _known_as(target: SshTarget) -> tuple[str, int]:
    """An alias stands in known_hosts as it is, without a port."""
    if target.host_key_alias:
        return target.host_key_alias, hostkeys.SSH_PORT
    return target.hostname, target.port


def _verify(
    transport: paramiko.Transport,
    known: Sequence[hostkeys.KnownHost],
    target: SshTarget,
    host: str,
    *,
    accept_new: bool,
) -> None:
    shown = transport.get_remote_server_key()
    key = HostKey(shown.get_name(), shown.get_base64())
    judgement = hostkeys.judge(known, *_known_as(target), key)
    if judgement.verdict == "known":
        return
    if judgement.verdict == "unknown" and accept_new:
        hostkeys.append(target.known_hosts[0], *_known_as(target), key)
        return
    raise distrust(judgement, key, target, host)


def distrust(judgement: Judgement, key: HostKey, target: SshTarget, host: str) -> Unreachable:
    """Why this key is not trusted, and the command that settles it. PURE."""
    where = f"{target.hostname}:{target.port}"
    shown = f"{key.type} {key.fingerprint}"
    name = hostkeys.name_in_file(*_known_as(target))
    file = target.known_hosts[0] if target.known_hosts else "~/.ssh/known_hosts"
    lines = ", ".join(line.where for line in judgement.lines)
    scan = _scan_line(target, file)
    if judgement.verdict == "unknown":
        return Unreachable(
            f"the host key of {where} is not known ({shown})",
            host=host,
            hint=f"compare the fingerprint, then `{scan}`; or --accept-new-host-keys",
            cause="ssh-host-key-unknown",
        )
    if judgement.verdict == "changed":
        recorded = judgement.lines[0].where.rpartition(":")[0]
        return Unreachable(
            f"THE HOST KEY OF {where} HAS CHANGED: it shows {shown}, not what {lines} says. "
            "The host was reinstalled, or someone is in between",
            host=host,
            hint=f"when you know why: `ssh-keygen -R '{name}' -f {recorded}`, then `{scan}`",
            cause="ssh-host-key-changed",
        )
    if judgement.verdict == "revoked":
        return Unreachable(f"the host key of {where} ({shown}) is revoked by {lines}", host=host)
    return Unreachable(
        f"{where} is known through @cert-authority only ({lines}); "
        "host certificates are not supported",
        host=host,
        hint=f"add its plain key: `{scan}`",
    )


def _scan_line(target: SshTarget, file: str) -> str:
    scan = f"ssh-keyscan -p {target.port} {target.hostname}"
    if target.host_key_alias:
        scan += f" | sed 's/^[^ ]*/{target.host_key_alias}/'"
    return f"{scan} >> {file}"
