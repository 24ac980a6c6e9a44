"""Files that a cluster keeps on a host, outside its containers."""

from __future__ import annotations

from clusterctl.transport.base import Transport

# $1: the cluster. links.local_state_dir says the same of this machine.
_DIRECTORY = """
if [ "$(id -u)" = 0 ]; then base=/var/lib/clusterctl; else base=$HOME/.local/state/clusterctl; fi
printf %s "$base/$1"
"""


def state_dir(transport: Transport, cluster: str) -> str:
    """/var/lib/clusterctl/CLUSTER, or ~/.local/state/clusterctl/CLUSTER without root."""
    return transport.run(["sh", "-c", _DIRECTORY, "sh", cluster]).stdout


def write(transport: Transport, cluster: str, name: str, data: bytes) -> None:
    """Write a file of the state directory, 0600 in a directory of 0700."""
    directory = state_dir(transport, cluster)
    transport.run(["mkdir", "-p", "-m", "700", directory])
    transport.put(data, f"{directory}/{name}", mode=0o600)


def read(transport: Transport, cluster: str, name: str) -> str | None:
    """The file's text; None when there is no such file."""
    path = f"{state_dir(transport, cluster)}/{name}"
    result = transport.run(["cat", path], check=False)
    return result.stdout if result.ok else None


def remove(transport: Transport, cluster: str, name: str) -> None:
    transport.run(["rm", "-f", f"{state_dir(transport, cluster)}/{name}"])
