"""Logging in: the keys to try, in OpenSSH's order, and what is said when none is taken."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.agent import AgentSSH

from clusterctl.errors import Unreachable
from clusterctl.transport.sshconfig import SshTarget

UnknownKey: type[Exception] = paramiko.UnknownKeyType  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Candidate:
    """A key to try, or the reason why a file named by the configuration is none."""

    label: str
    key: paramiko.PKey | None


class _AgentAt(AgentSSH):
    """The agent behind one socket; paramiko's own looks at SSH_AUTH_SOCK only."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10.0)
        self._socket.connect(path)
        self._connect(self._socket)  # type: ignore[attr-defined]

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


@contextmanager
def agent_keys(path: str | None) -> Iterator[Sequence[paramiko.AgentKey]]:
    """The agent's keys while it is connected; none where there is no agent to ask."""
    if path is None:
        yield ()
        return
    try:
        agent = _AgentAt(path)
    except (OSError, paramiko.SSHException):
        yield ()
        return
    try:
        yield agent.get_keys()
    finally:
        agent.close()


def candidates(target: SshTarget, agent: Sequence[paramiko.AgentKey]) -> Iterator[Candidate]:
    """Agent keys that the configuration names, then the agent's others, then key files."""
    named = {_public_blob(file) for file in target.identities}
    held = [key for key in agent if key.blob in named]
    others = [] if target.identities_only else [key for key in agent if key.blob not in named]
    for key in [*held, *others]:
        yield Candidate(f"agent:{key.comment or key.name}", key)
    in_agent = {key.blob for key in held}
    for file in target.identities:
        if Path(file).exists() and _public_blob(file) not in in_agent:
            yield _from_file(file)


def _public_blob(identity: str) -> bytes | None:
    public = Path(identity.removesuffix(".pub") + ".pub")
    if not public.is_file():
        return None
    fields = public.read_text(encoding="utf-8", errors="replace").split()
    return base64.b64decode(fields[1]) if len(fields) > 1 else None


def _from_file(file: str) -> Candidate:
    try:
        return Candidate(file, paramiko.PKey.from_path(file))
    except (paramiko.PasswordRequiredException, TypeError):
        return Candidate(f"{file} (has a passphrase and is not in the agent)", None)
    except (OSError, ValueError, UnsupportedAlgorithm, paramiko.SSHException, UnknownKey) as error:
        return Candidate(f"{file} (unusable: {error})", None)


def log_in(transport: paramiko.Transport, target: SshTarget, host: str) -> None:
    """Authenticate, or raise Unreachable naming every key that was tried."""
    takes = _ask_without_key(transport, target)
    if takes is None:
        return
    tried: list[str] = []
    with agent_keys(target.agent) as agent:
        for candidate in candidates(target, agent):
            tried.append(candidate.label)
            wants = _offer(transport, target.user, candidate.key)
            if wants == []:
                return
            takes = wants or takes
            if wants or not transport.is_active():
                break
    raise _refused(target, host, tried, takes, dropped=not transport.is_active())


def _offer(transport: paramiko.Transport, user: str, key: paramiko.PKey | None) -> list[str] | None:
    """[]: logged in. None: this key is not taken. Else what the server wants besides or instead."""
    if key is None:
        return None
    try:
        return list(transport.auth_publickey(user, key))
    except paramiko.BadAuthenticationType as error:
        return list(error.allowed_types)
    except paramiko.AuthenticationException:
        return None


def _ask_without_key(transport: paramiko.Transport, target: SshTarget) -> Sequence[str] | None:
    """None: logged in (some hosts ask for no key). Else the methods that the server takes."""
    try:
        transport.auth_none(target.user)
    except paramiko.BadAuthenticationType as error:
        return list(error.allowed_types)
    except paramiko.AuthenticationException:
        return []
    return None


def _refused(
    target: SshTarget, host: str, tried: Sequence[str], accepted: Sequence[str], *, dropped: bool
) -> Unreachable:
    keys = ", ".join(tried) or "none (no agent, no key file)"
    takes = ", ".join(accepted) or "nothing that it names"
    ended = "; the server ended the connection (MaxAuthTries?)" if dropped else ""
    return Unreachable(
        f"{target.where} refused the login; keys tried: {keys}; the server takes: {takes}{ended}",
        host=host,
        hint=f"try `ssh -p {target.port} {target.user}@{target.hostname}`; "
        "add the key with ssh-add, or name it as `identity` of the host",
        cause="ssh-permission-denied",
    )
