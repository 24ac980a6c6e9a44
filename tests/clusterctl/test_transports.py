"""What NCCL said of two real H100, and what follows for a deployment."""

from __future__ import annotations

from pathlib import Path

import pytest

from clusterctl.serving.placement import Devices
from clusterctl.serving.transports import chosen, over_tcp, spans_nodes
from clusterctl.spec import ServeSpec

RECORDED = Path(__file__).parents[1] / "data/gpu/h100x2"


@pytest.mark.parametrize(
    ("log", "transport", "tcp"),
    [
        ("nccl-p2p.log", "P2P/CUMEM", False),
        ("nccl-shm.log", "SHM/direct/direct", False),
        ("nccl-socket.log", "NET/Socket", True),
    ],
)
def test_recorded_logs(log: str, transport: str, tcp: bool) -> None:
    lines = (RECORDED / log).read_text().splitlines()
    assert transport in chosen(lines)
    assert any(map(over_tcp, lines)) is tcp


def test_behind_the_name_of_a_worker_of_rays() -> None:
    line = (
        "(RayWorkerProc pid=71, ip=10.0.0.2) gpu02:71:99 [0] NCCL INFO Channel 00/0 : 8[0] -> 0[0] "
        "[receive] via NET/IB/3/GDRDMA"
    )
    assert chosen([line]) == ("NET/IB/GDRDMA",)
    assert not over_tcp(line)


@pytest.mark.parametrize(("tp", "pp", "spans"), [(8, 2, False), (16, 1, True), (1, 16, False)])
def test_a_tensor_group_larger_than_a_node(tp: int, pp: int, spans: bool) -> None:
    devices = Devices({"gpu01": 8, "gpu02": 8}, "gpu01")
    assert spans_nodes(ServeSpec("m", "m", tp=tp, pp=pp), devices) is spans
