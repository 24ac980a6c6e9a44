"""What can go wrong, as types. cli.py is the one place where these become text.

ClusterctlError            1  something failed
├── ConfigError            2  the command line or cluster.yaml is wrong
│   └── NoCluster          2  nothing says which cluster is meant
├── Unreachable            3  a host could not be reached or logged in to
├── PreflightFailed        4  the hosts cannot run this cluster, found before anything was created
├── NotReady               5  formation, sanity or readiness was not seen in time
├── LockHeld               6  another run holds the cluster's lock
└── CommandFailed          1  a command on a host ended with a non-zero code; carries the Result
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clusterctl.transport.base import Result

EXIT_OK = 0
EXIT_INTERRUPTED = 130


class ClusterctlError(Exception):
    """A failure a user can act on: what happened, on which host, and what to do about it.

    `code` is the stable name used in `--json`; `exit_code` is what the process ends with; `cause`
    the slug of the root cause, where it is known (`doctor`).
    """

    code = "failed"
    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        host: str | None = None,
        hint: str | None = None,
        cause: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.host = host
        self.hint = hint
        self.cause = cause


class ConfigError(ClusterctlError):
    code = "config"
    exit_code = 2


class NoCluster(ConfigError):
    """Nothing says which cluster is meant."""


class Unreachable(ClusterctlError):
    code = "unreachable"
    exit_code = 3


class PreflightFailed(ClusterctlError):
    code = "preflight"
    exit_code = 4


class NotReady(ClusterctlError):
    code = "not_ready"
    exit_code = 5


class LockHeld(ClusterctlError):
    code = "lock_held"
    exit_code = 6


class CommandFailed(ClusterctlError):
    """A command ended with a non-zero code. The result travels with the error."""

    code = "command_failed"

    def __init__(self, result: Result, *, host: str, hint: str | None = None) -> None:
        last = (result.stderr.strip() or result.stdout.strip()).splitlines()[-3:]
        detail = f": {' | '.join(last)}" if last else ""
        name = result.argv[0] if result.argv else "command"
        super().__init__(f"{name} exited {result.exit_code}{detail}", host=host, hint=hint)
        self.result = result
