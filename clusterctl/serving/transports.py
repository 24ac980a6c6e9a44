"""How the serving ranks really reach each other, from NCCL's own words at their start. PURE.

NCCL says it once a communicator, before weights are loaded, when NCCL_DEBUG=INFO. Ranks on CPU
slots speak gloo, which says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from clusterctl.serving.placement import Devices
from clusterctl.spec import ServeSpec
from engine.nccl_log import transports

# The channels' lines belong to the subsystem INIT; the others would fill the log.
VARIABLES: Mapping[str, str] = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT"}
TCP = ("NET/Socket", "NET/FastSocket")


def chosen(lines: Iterable[str]) -> tuple[str, ...]:
    """Of all ranks, the busiest first: "NET/IB/GDRDMA", "P2P/CUMEM", ..."""
    return transports("\n".join(lines))


def over_tcp(line: str) -> bool:
    return "NCCL INFO" in line and any(name in TCP for name in transports(line))


def spans_nodes(serve: ServeSpec, devices: Devices) -> bool:
    """Whether the ranks of one tensor group lie on several nodes: every layer waits for them."""
    return serve.tp > max(devices.by_node.values())
