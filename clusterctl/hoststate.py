"""The directory that a host keeps for a cluster: /var/lib/clusterctl/CLUSTER for root, else
~/.local/state/clusterctl/CLUSTER. On the head it holds the lock, the Ray token, the spec and the
sanity record; on every host the engine's caches and the list of directories made there by us.

Each verb is one round trip. Whose directory it is, is decided on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clusterctl.errors import CommandFailed
from clusterctl.facts.types import HostInfo
from clusterctl.transport.base import Result, Transport

ROOTS_DIRECTORY = "/var/lib/clusterctl"
TOKEN_FILE = "ray_token"
ABSENT = 44  # the exit code of a read that found nothing
KEPT_LINES = 500  # of a file that grows
HELD = 73  # the exit code of a lock that somebody has


@dataclass(frozen=True)
class LockAnswer:
    """`holder` None: the lock is ours now; else what its owner wrote (or nothing yet). `fresh`: the
    host had no directory for this cluster before."""

    holder: str | None
    fresh: bool


_BASE = f"""set -eu
if [ "$(id -u)" = 0 ]; then base={ROOTS_DIRECTORY}; else base=$HOME/.local/state/clusterctl; fi
state=$base/$1
"""

_READ = f'[ -e "$state/$2" ] || exit {ABSENT}; cat "$state/$2"'

_WRITE = """umask 077
mkdir -p "$state"
cat > "$state/.$2.new"
chmod "$3" "$state/.$2.new"
mv "$state/.$2.new" "$state/$2"
"""

# Where nothing is kept for the cluster (any more), a line of its history does not begin it again.
_APPEND = f"""umask 077
[ -d "$state" ] || exit 0
cat "$state/$2" 2>/dev/null || :
cat >> "$state/$2"
if [ "$(wc -l < "$state/$2")" -gt {2 * KEPT_LINES} ]; then
  tail -n {KEPT_LINES} "$state/$2" > "$state/.$2.new"
  mv "$state/.$2.new" "$state/$2"
fi
"""

_REMOVE = 'rm -f "$state/$2"'

# `made` lists what was absent, topmost first. Removal takes empty directories only: what somebody
# put there since is theirs.
_ENSURE = """umask 022
mkdir -p "$state"
shift
for wanted in "$@"; do
  top=; at=$wanted
  while [ ! -e "$at" ]; do top=$at; at=$(dirname "$at"); done
  [ -n "$top" ] || continue
  mkdir -p "$wanted"
  case $top/ in "$state"/*) ;; *) echo "$top" >> "$state/made" ;; esac
done
"""

_EXISTS = '[ -e "$state" ]'

_LOCK = f"""umask 077
[ -e "$state" ] || fresh=fresh
mkdir -p "$state"
if mkdir "$state/lock" 2>/dev/null; then cat > "$state/lock/owner"; echo "${{fresh-}}"; exit 0; fi
cat "$state/lock/owner" 2>/dev/null || :
exit {HELD}
"""

# An `up` that failed before it made anything leaves no directory behind either.
_UNLOCK = """rm -rf "$state/lock"
rmdir "$state" "$base" 2>/dev/null || :
"""

# The container's root wrote its caches here: another login needs sudo to take them away.
_PURGE = """if [ -e "$state/made" ]; then
  while read -r top; do
    [ ! -d "$top" ] || find "$top" -depth -type d -empty -delete 2>/dev/null ||
      sudo -n find "$top" -depth -type d -empty -delete 2>/dev/null || :
  done < "$state/made"
fi
rm -rf "$state" 2>/dev/null || sudo -n rm -rf "$state"
rmdir "$base" 2>/dev/null || :
"""


def path_for(host: HostInfo, cluster: str) -> str:
    """Where the directory is, from what is known of the host."""
    base = ROOTS_DIRECTORY if host.is_root else f"{host.home}/.local/state/clusterctl"
    return f"{base}/{cluster}"


def read(transport: Transport, cluster: str, name: str) -> str | None:
    """A file of the directory, None when there is no such file."""
    result = _run(transport, _READ, [cluster, name], check=False)
    if result.exit_code == ABSENT:
        return None
    return result.stdout if result.ok else _run(transport, _READ, [cluster, name]).stdout


def write(transport: Transport, cluster: str, name: str, data: bytes, *, mode: int = 0o600) -> None:
    """The file appears whole. Its content travels by stdin: it may be a secret."""
    _run(transport, _WRITE, [cluster, name, f"{mode:o}"], stdin=data)


def append(transport: Transport, cluster: str, name: str, line: str) -> str:
    """Add a line, where the host keeps a directory for the cluster; gives what was there before."""
    return _run(transport, _APPEND, [cluster, name], stdin=f"{line}\n".encode()).stdout


def remove(transport: Transport, cluster: str, name: str) -> None:
    _run(transport, _REMOVE, [cluster, name])


def ensure_directories(transport: Transport, cluster: str, paths: Sequence[str]) -> None:
    """Make what is absent and remember it, for `purge`."""
    _run(transport, _ENSURE, [cluster, *paths])


def exists(transport: Transport, cluster: str) -> bool:
    """Whether the host has this cluster's directory."""
    return _run(transport, _EXISTS, [cluster], check=False).ok


def lock(transport: Transport, cluster: str, owner: bytes) -> LockAnswer:
    """Make the lock directory, unless it is there."""
    result = _run(transport, _LOCK, [cluster], stdin=owner, check=False)
    if result.exit_code not in (0, HELD):
        raise CommandFailed(result, host=transport.host)
    if result.ok:
        return LockAnswer(None, fresh=result.stdout.strip() == "fresh")
    return LockAnswer(result.stdout, fresh=False)


def unlock(transport: Transport, cluster: str) -> None:
    _run(transport, _UNLOCK, [cluster])


def purge(transport: Transport, cluster: str) -> None:
    """Remove the directory, and what `ensure_directories` made elsewhere and is still empty."""
    _run(transport, _PURGE, [cluster])


def _run(
    transport: Transport,
    script: str,
    arguments: Sequence[str],
    *,
    stdin: bytes = b"",
    check: bool = True,
) -> Result:
    return transport.run(["sh", "-c", _BASE + script, "sh", *arguments], stdin=stdin, check=check)
