"""Every fault of the testbed really is one, and heals without a trace."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest

from .conftest import MODEL, RunningTestbed
from .test_testbed import answers

pytestmark = pytest.mark.full


@dataclass(frozen=True)
class Contract:
    """`seen`: a command that succeeds on the host while the fault lasts, and fails before and
    after; on the struck host itself or on another one, with {address} of the struck one."""

    fault: str
    seen: str
    on_another: bool = False


TWIN = "ip -br addr show | grep -q ^eth1"
SHARD = f"{MODEL}/model.safetensors"
CONTRACTS = (
    Contract("loss:40", "iptables -S | grep -q 'statistic.*DROP'"),
    Contract("mtu", "grep -q 1400 /sys/class/net/eth0/mtu"),
    Contract("large-lost", "iptables -S | grep -q 'length 1401:65535.*DROP'"),
    Contract(
        "return-ports-blocked",
        "! timeout 2 bash -c '</dev/tcp/{address}/45678' 2>&1 | grep -q refused",
        True,
    ),
    Contract("nic-twin", TWIN),
    Contract("address-duplicate:gpu01", "ip -br addr show eth0 | grep -q '[.]11/24.*'"),
    Contract("hostname-loopback", "getent hosts $(hostname) | grep -q ^127.0.1.1"),
    Contract("clock-skewed:120", "test $(( $(date +%s) - {now} )) -gt 60"),
    Contract("shm-small", "df --output=size -BM /dev/shm | grep -qw 64M"),
    Contract("docker-disk-full", "df /var/lib/docker | grep -q 100%"),
    Contract(f"model-truncated:{SHARD}", "test $(stat -Lc %s /models/{shard}) -lt 200000000"),
    Contract(f"model-missing:{MODEL}", "! test -e /models/{shard}"),
    Contract("image-differs", "docker image inspect {image} | grep -q testbed.fault"),
    Contract(
        "ray-skew",
        "docker run --rm --network none {image} python3 -c "
        "'from importlib.metadata import version; print(version(\"ray\"))' | grep -qx 2.53.0",
    ),
    Contract("ray-stray", "ss -Hlnt | grep -q :6379"),
)


@pytest.fixture
def struck(testbed: RunningTestbed, smollm2: str) -> str:
    testbed.ssh(testbed.hosts[-1], f"docker pull -q {testbed.image}")
    return testbed.hosts[-1]


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.fault)
def test_a_fault_is_there_and_heals_without_a_trace(
    testbed: RunningTestbed, struck: str, contract: Contract
) -> None:
    where = testbed.hosts[1] if contract.on_another else struck
    command = contract.seen.format(
        address=testbed.addresses[struck], image=testbed.image, shard=SHARD, now=int(time.time())
    )
    before = everything(testbed, struck)
    assert not answers(testbed, where, command)
    with testbed.fault(struck, contract.fault):
        assert answers(testbed, where, command)
    assert not answers(testbed, where, command)
    assert everything(testbed, struck) == before


def everything(testbed: RunningTestbed, host: str) -> dict[str, Any]:
    """Its snapshot, and which image has the node image's name."""
    id = testbed.ssh(host, f"docker image inspect --format '{{{{.Id}}}}' {testbed.image}")
    return {**testbed.snapshot(host), "image": id}
