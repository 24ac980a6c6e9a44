"""What a node's supervisor is told of a deployment: spec.json of its directory, as a value. PURE.

The contract stands in docs/architecture.md ("What a supervisor keeps"); remote/supervision obeys
it and imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from clusterctl.raycluster import ExpectedNode


@dataclass(frozen=True)
class Process:
    """What one node runs. `env_files`: variables whose values are secrets, each the content of a
    file in that node's container, less white space at its ends."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    env_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Liveness:
    """How the head's supervisor asks for a token: at `url`, the OpenAI API (".../v1"), with the key
    in `api_key_file`, every `interval_s`. Nothing within `deadline_s`, and no counter of /metrics
    that moves: the deployment hangs; four times as long while its ranks compute. Before its first
    token it may take any time, as long as it does not stand still for `stall_s`: no new line, bytes
    read or written, or CPU time on any node.
    `certificate`: the one (PEM) by which an API that speaks TLS must show itself."""

    url: str
    api_key_file: str
    interval_s: float = 5.0
    deadline_s: float = 30.0
    stall_s: float = 600.0
    certificate: str = ""


@dataclass(frozen=True)
class Restart:
    """After a death: the whole group again, after `backoff_s`, doubled each time up to
    `backoff_max_s`. More than `in_a_row` deaths without `stable_s` of service between them, or an
    exit before the first token ever: failed. Such an exit is tried again all the same when a line
    that the group printed holds one of `retry_start` (a port taken in a race, say)."""

    in_a_row: int = 5
    backoff_s: float = 2.0
    backoff_max_s: float = 60.0
    stable_s: float = 600.0
    retry_start: Sequence[str] = ()  # plain text, not patterns


def spec_document(
    name: str,
    generation: int,
    process: Process,
    *,
    owner: str,
    group: Sequence[str] = (),
    nodes: Sequence[ExpectedNode] = (),
    liveness: Liveness | None = None,
    restart: Restart | None = None,
) -> dict[str, Any]:
    """spec.json of one node.

    `owner` is what ENGINE_DEPLOYMENT says in every rank's environment. `group`: the nodes that run
    a process of it, the head's first, where there are several. `nodes`: whom Ray must know before
    it starts again. `liveness` and `restart` are read on the head alone.
    """
    return {
        "name": name,
        "generation": generation,
        "stop": False,
        "argv": list(process.argv),
        "env": dict(process.env),
        "env_files": dict(process.env_files),
        "owner": owner,
        "group": list(group),
        "nodes": [
            {"name": node.name, "address": node.address, "devices": node.devices} for node in nodes
        ],
        "liveness": None if liveness is None else asdict(liveness),
        "restart": None if restart is None else asdict(restart),
    }
