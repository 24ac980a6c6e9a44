"""Where an SSH alias leads: the answer of `ssh -G`, or of a parser that refuses what it would
otherwise have to ignore."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clusterctl.errors import ConfigError, Unreachable
from clusterctl.spec import NodeSpec, SshSpec

USER_CONFIG = "~/.ssh/config"
SYSTEM_CONFIG = "/etc/ssh/ssh_config"
DEFAULT_IDENTITIES = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
RESOLVE_TIMEOUT_S = 20.0

# keyword in lower case -> its values, in the file's order
Options = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class SshTarget:
    """One host as SSH sees it. `agent` is the agent's socket, None for no agent.

    `host_key_alias` replaces the address in known_hosts; `known_hosts` are files, the first of
    which learns new keys.
    """

    alias: str
    hostname: str
    user: str
    port: int
    identities: tuple[str, ...]
    identities_only: bool
    agent: str | None
    jump: str | None
    proxy_command: str | None
    host_key_alias: str | None
    known_hosts: tuple[str, ...]
    connect_timeout: float | None

    @property
    def where(self) -> str:
        return f"{self.user}@{self.hostname}:{self.port}"


@dataclass(frozen=True)
class Wanted:
    """What is asked for: an alias, and what was said about it elsewhere, which wins."""

    alias: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    jump: str | None = None

    @classmethod
    def of_node(cls, node: NodeSpec) -> Wanted:
        return cls(node.address, node.user, node.port, node.identity)

    @classmethod
    def of_jump(cls, jump: str) -> Wanted:
        """ "user@a:22,b" is b by way of a."""
        before, _, last = jump.rpartition(",")
        match = _JUMP.fullmatch(last.removeprefix("ssh://"))
        if match is None:
            raise ConfigError(f"ProxyJump {jump!r} is not [USER@]HOST[:PORT]")
        port = match["port"]
        host = match["host"].strip("[]")
        return cls(host, match["user"], int(port) if port else None, jump=before or None)


_JUMP = re.compile(r"(?:(?P<user>[^@]+)@)?(?P<host>\[[^\]]+\]|[^:@]+)(?::(?P<port>\d+))?")


def resolve(wanted: Wanted, spec: SshSpec) -> SshTarget:
    """Everything needed to connect. Raises ConfigError for what cannot be honoured."""
    if wanted.alias.startswith("-"):
        raise ConfigError(f"{wanted.alias!r} is not a host name", host=wanted.alias)
    client = shutil.which("ssh")
    options = _ask_ssh(client, wanted, spec) if client else read_files(_files(spec), wanted.alias)
    return target_of(wanted, options, spec)


def _files(spec: SshSpec) -> list[Path]:
    names = [spec.config] if spec.config else [USER_CONFIG, SYSTEM_CONFIG]
    return [Path(name).expanduser() for name in names]


def ask_ssh_argv(client: str, wanted: Wanted, spec: SshSpec) -> list[str]:
    argv = [client, "-G"]
    if spec.config:
        argv += ["-F", os.path.expanduser(spec.config)]
    if wanted.user:
        argv += ["-l", wanted.user]
    if wanted.port:
        argv += ["-p", str(wanted.port)]
    return [*argv, "--", wanted.alias]


def _ask_ssh(client: str, wanted: Wanted, spec: SshSpec) -> Options:
    argv = ask_ssh_argv(client, wanted, spec)
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=RESOLVE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(
            f"ssh -G {wanted.alias} did not answer within {RESOLVE_TIMEOUT_S:g} s",
            host=wanted.alias,
            hint="a Match exec of the SSH configuration may be waiting for something",
        ) from None
    if done.returncode != 0:
        raise ConfigError(
            f"ssh does not accept its configuration: {done.stderr.strip()}", host=wanted.alias
        )
    return parse_ssh_g(done.stdout)


def parse_ssh_g(text: str) -> Options:
    """`keyword value` lines; a keyword may repeat."""
    options: dict[str, list[str]] = {}
    for line in text.splitlines():
        keyword, _, value = line.partition(" ")
        options.setdefault(keyword.lower(), []).append(value.strip())
    return options


def read_files(files: Sequence[Path], alias: str) -> Options:
    """The options of one alias where no ssh client can be asked."""
    from paramiko import SSHConfig

    config = SSHConfig()
    for file in files:
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            refuse_unreadable(text, file)
            config.parse(text.splitlines(keepends=True))
    found = config.lookup(alias)
    return {
        name: list(value) if isinstance(value, list) else [str(value)]
        for name, value in found.items()
    }


_NOT_OURS = re.compile(r"^\s*(include\b|match\b.*\bexec\b)", re.IGNORECASE)


def refuse_unreadable(text: str, file: Path) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        if _NOT_OURS.match(line):
            raise ConfigError(
                f"{file}:{number}: `{line.strip()}` needs an ssh client to be understood",
                hint="install an OpenSSH client, or give a plain file as ssh.config",
            )


def target_of(wanted: Wanted, options: Options, spec: SshSpec) -> SshTarget:
    """PURE but for the environment: the options of `ssh -G` as what we act on."""

    def option(name: str) -> str | None:
        value = options.get(name, [""])[0]
        return None if value.lower() in ("", "none") else value

    hostname = option("hostname") or wanted.alias
    user = wanted.user or option("user") or getpass.getuser()
    port = wanted.port or int(option("port") or 22)
    tokens = _tokens(wanted.alias, hostname, user, port, option("hostkeyalias"))
    configured = options.get("identityfile", DEFAULT_IDENTITIES)
    identities = [wanted.identity] if wanted.identity else configured
    return SshTarget(
        alias=wanted.alias,
        hostname=hostname,
        user=user,
        port=port,
        identities=tuple(_path(name, tokens) for name in identities if name.lower() != "none"),
        identities_only=bool(wanted.identity) or option("identitiesonly") == "yes",
        agent=_agent(option("identityagent"), options, tokens),
        jump=wanted.jump or option("proxyjump"),
        proxy_command=_proxy_command(wanted, option("proxycommand"), tokens),
        host_key_alias=option("hostkeyalias"),
        known_hosts=_known_hosts(options, spec, tokens),
        connect_timeout=_seconds(option("connecttimeout")),
    )


def _tokens(
    alias: str, hostname: str, user: str, port: int, key_alias: str | None
) -> Mapping[str, str]:
    return {
        "%": "%",
        "d": str(Path.home()),
        "h": hostname,
        "i": str(os.getuid()),
        "k": key_alias or alias,
        "n": alias,
        "p": str(port),
        "r": user,
        "u": getpass.getuser(),
    }


def _expand(text: str, tokens: Mapping[str, str]) -> str:
    def token(match: re.Match[str]) -> str:
        if match[1] not in tokens:
            raise ConfigError(f"{match[0]} in `{text}` of the SSH configuration is not supported")
        return tokens[match[1]]

    return re.sub(r"%(.)", token, text)


def _path(text: str, tokens: Mapping[str, str]) -> str:
    return os.path.expanduser(os.path.expandvars(_expand(text, tokens)))


def _agent(identity_agent: str | None, options: Options, tokens: Mapping[str, str]) -> str | None:
    if [value.lower() for value in options.get("identityagent", ())] == ["none"]:
        return None
    if identity_agent in (None, "SSH_AUTH_SOCK"):
        return os.environ.get("SSH_AUTH_SOCK") or None
    return _path(identity_agent, tokens)


def _proxy_command(wanted: Wanted, command: str | None, tokens: Mapping[str, str]) -> str | None:
    if wanted.jump or command is None:
        return None
    return _expand(command, tokens)


def _known_hosts(options: Options, spec: SshSpec, tokens: Mapping[str, str]) -> tuple[str, ...]:
    if spec.known_hosts:
        return (os.path.expanduser(spec.known_hosts),)
    user = options.get("userknownhostsfile", ["~/.ssh/known_hosts ~/.ssh/known_hosts2"])
    system = options.get("globalknownhostsfile", ["/etc/ssh/ssh_known_hosts"])
    names = " ".join([*user, *system]).split()
    return tuple(_path(name, tokens) for name in names if name.lower() != "none")


def _seconds(text: str | None) -> float | None:
    return float(text) if text else None
