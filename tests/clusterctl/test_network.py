"""Which address each node uses: the choice, its reason, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from clusterctl.errors import PreflightFailed
from clusterctl.facts.types import (
    Address,
    DockerFacts,
    GpuFacts,
    HostFacts,
    HostInfo,
    Interface,
)
from clusterctl.network import candidates, choose_addresses
from clusterctl.spec import ClusterSpec, NetworkSpec, NodeSpec

LO = Interface("lo", True, (Address("127.0.0.1", 8),), 65536, None, "00:00:00:00:00:00")
DOCKER0 = Interface(
    "docker0", True, (Address("172.17.0.1", 16),), 1500, None, "02:42:00:00:00:01", is_virtual=True
)


def nic(name: str, *addresses: str, speed: int | None = None, rdma: str | None = None) -> Interface:
    bound = tuple(
        Address(ip, int(prefix)) for ip, _, prefix in (a.partition("/") for a in addresses)
    )
    return Interface(name, True, bound, 1500, speed, "02:00:00:00:00:01", rdma)


def host(name: str, *interfaces: Interface, resolves_to: tuple[str, ...] | None = ()) -> HostFacts:
    info = HostInfo(
        hostname=name,
        os="Linux",
        kernel="6.8",
        architecture="x86_64",
        user="root",
        home="/root",
        is_root=True,
        can_sudo=True,
        cpus=1,
        cpu_model=None,
        memory_bytes=1,
        memory_available_bytes=1,
        clock_offset_s=0.0,
        hostname_resolves_to=resolves_to,
        ulimits=(),
        disks=(),
    )
    return HostFacts(name, info, (LO, *interfaces), GpuFacts(), DockerFacts(), ())


def cluster(*names: str, network: NetworkSpec | None = None, **addresses: str) -> ClusterSpec:
    nodes = tuple(NodeSpec(name, name, cluster_address=addresses.get(name)) for name in names)
    return ClusterSpec("c", nodes, names[0], network=network or NetworkSpec())


def facts(*hosts: HostFacts) -> Mapping[str, HostFacts]:
    return {host.name: host for host in hosts}


def choice(spec: ClusterSpec, *hosts: HostFacts) -> dict[str, str]:
    chosen = choose_addresses(spec, facts(*hosts))
    return {name: f"{c.address} {c.interface}" for name, c in chosen.items()}


def reason(spec: ClusterSpec, *hosts: HostFacts) -> str:
    (only,) = {c.reason for c in choose_addresses(spec, facts(*hosts)).values()}
    return only


def refused(spec: ClusterSpec, *hosts: HostFacts) -> PreflightFailed:
    with pytest.raises(PreflightFailed) as caught:
        choose_addresses(spec, facts(*hosts))
    return caught.value


AB = cluster("a", "b")


def test_the_subnet_that_all_share() -> None:
    a = host("a", nic("eth0", "10.0.0.1/24"), nic("eth1", "192.168.1.1/24"))
    b = host("b", nic("eno1", "10.0.0.2/24"), nic("eth1", "192.168.2.1/24"))
    assert choice(AB, a, b) == {"a": "10.0.0.1 eth0", "b": "10.0.0.2 eno1"}
    assert reason(AB, a, b) == "10.0.0.0/24 is the only subnet that all nodes share"


def test_rdma_goes_before_speed() -> None:
    a = host("a", nic("e0", "10.0.0.1/24", speed=400_000), nic("r0", "10.1.0.1/24", rdma="mlx5_0"))
    b = host("b", nic("e0", "10.0.0.2/24", speed=400_000), nic("r0", "10.1.0.2/24", rdma="mlx5_0"))
    assert choice(AB, a, b) == {"a": "10.1.0.1 r0", "b": "10.1.0.2 r0"}
    assert reason(AB, a, b) == "10.1.0.0/24 is the shared subnet with RDMA on all nodes"


def test_a_network_is_as_good_as_its_worst_node() -> None:
    a = host("a", nic("e0", "10.0.0.1/24", speed=100_000), nic("e1", "10.1.0.1/24", speed=25_000))
    b = host("b", nic("e0", "10.0.0.2/24", speed=1_000), nic("e1", "10.1.0.2/24", speed=25_000))
    assert choice(AB, a, b) == {"a": "10.1.0.1 e1", "b": "10.1.0.2 e1"}
    assert reason(AB, a, b) == "10.1.0.0/24 is the fastest shared subnet (25 Gbit/s)"


def test_a_known_speed_goes_before_an_unknown_one() -> None:
    a = host("a", nic("e0", "10.0.0.1/24"), nic("e1", "10.1.0.1/24", speed=1_000))
    b = host("b", nic("e0", "10.0.0.2/24"), nic("e1", "10.1.0.2/24", speed=1_000))
    assert choice(AB, a, b) == {"a": "10.1.0.1 e1", "b": "10.1.0.2 e1"}


def test_equal_ones_are_chosen_the_same_way_each_time_and_offered_in_order() -> None:
    a = host("a", nic("e1", "10.1.0.1/24"), nic("e0", "10.0.0.1/24"))
    b = host("b", nic("e0", "10.0.0.2/24"), nic("e1", "10.1.0.2/24"))
    assert reason(AB, a, b) == "10.0.0.0/24 is the first of 2 shared subnets that look equal"
    assert [c["a"].address for c in candidates(AB, facts(a, b))] == ["10.0.0.1", "10.1.0.1"]
    assert [c["a"].address for c in candidates(AB, facts(b, replace(a)))] == [
        "10.0.0.1",
        "10.1.0.1",
    ]


def test_what_docker_made_is_no_network_between_nodes() -> None:
    a = host("a", DOCKER0, nic("eth0", "10.0.0.1/24"))
    b = host("b", DOCKER0, nic("eth0", "10.0.0.2/24"))
    assert choice(AB, a, b) == {"a": "10.0.0.1 eth0", "b": "10.0.0.2 eth0"}


def test_a_link_that_is_down_does_not_count() -> None:
    down = replace(nic("eth1", "10.1.0.2/24", rdma="mlx5_0"), up=False)
    a = host("a", nic("eth0", "10.0.0.1/24"), nic("eth1", "10.1.0.1/24", rdma="mlx5_0"))
    b = host("b", nic("eth0", "10.0.0.2/24"), down)
    assert choice(AB, a, b) == {"a": "10.0.0.1 eth0", "b": "10.0.0.2 eth0"}


class TestAsked:
    A = host("a", nic("eth0", "10.0.0.1/24", speed=100_000), nic("eth1", "10.1.0.1/24"))
    B = host("b", nic("eth0", "10.0.0.2/24", speed=100_000), nic("eth1", "10.1.0.2/24"))

    def test_an_interface(self) -> None:
        spec = cluster("a", "b", network=NetworkSpec(interface="eth1"))
        assert choice(spec, self.A, self.B) == {"a": "10.1.0.1 eth1", "b": "10.1.0.2 eth1"}
        assert reason(spec, self.A, self.B) == "network.interface eth1"

    def test_a_subnet(self) -> None:
        spec = cluster("a", "b", network=NetworkSpec(subnet="10.1.0.0/16"))
        assert choice(spec, self.A, self.B) == {"a": "10.1.0.1 eth1", "b": "10.1.0.2 eth1"}

    def test_a_subnet_over_routed_networks(self) -> None:
        spec = cluster("a", "b", network=NetworkSpec(subnet="10.0.0.0/8"))
        b = host("b", nic("eth7", "10.99.0.2/24"))
        assert choice(spec, self.A, b) == {"a": "10.0.0.1 eth0", "b": "10.99.0.2 eth7"}
        assert reason(spec, self.A, b) == "network.subnet 10.0.0.0/8"

    def test_a_virtual_interface_when_named(self) -> None:
        spec = cluster("a", "b", network=NetworkSpec(interface="tailscale0"))
        a = host("a", replace(nic("tailscale0", "100.64.0.1/32"), is_virtual=True))
        b = host("b", replace(nic("tailscale0", "100.64.0.2/32"), is_virtual=True))
        assert choice(spec, a, b) == {"a": "100.64.0.1 tailscale0", "b": "100.64.0.2 tailscale0"}

    def test_an_address_for_each_host(self) -> None:
        spec = cluster("a", "b", a="10.1.0.1", b="10.99.0.2")
        b = host("b", nic("eth7", "10.99.0.2/24"))
        assert choice(spec, self.A, b) == {"a": "10.1.0.1 eth1", "b": "10.99.0.2 eth7"}
        assert reason(spec, self.A, b) == "cluster_address"

    def test_an_address_for_one_host_leads_the_others(self) -> None:
        assert choice(cluster("a", "b", a="10.1.0.1"), self.A, self.B) == {
            "a": "10.1.0.1 eth1",
            "b": "10.1.0.2 eth1",
        }

    def test_an_address_that_the_host_does_not_have(self) -> None:
        error = refused(cluster("a", "b", b="10.1.0.9"), self.A, self.B)
        assert error.host == "b"
        assert error.message == (
            "cluster_address 10.1.0.9 is not an address of this host, which has 127.0.0.1/8 (lo), "
            "10.0.0.2/24 (eth0), 10.1.0.2/24 (eth1)"
        )

    def test_an_interface_that_one_host_lacks(self) -> None:
        spec = cluster("a", "b", network=NetworkSpec(interface="eth1"))
        error = refused(spec, self.A, host("b", nic("eno1", "10.1.0.2/24")))
        assert error.message == (
            "not every host has an address on eth1:\n"
            "  a: 127.0.0.1/8 (lo), 10.0.0.1/24 (eth0), 10.1.0.1/24 (eth1)\n"
            "  b: 127.0.0.1/8 (lo), 10.1.0.2/24 (eno1)"
        )


class TestRefused:
    def test_nothing_shared_names_what_each_host_has(self) -> None:
        a, b = host("a", nic("eth0", "10.0.0.1/24")), host("b", nic("eth0", "10.9.0.2/24"))
        error = refused(AB, a, b)
        assert error.message == (
            "the hosts share no private subnet:\n"
            "  a: 127.0.0.1/8 (lo), 10.0.0.1/24 (eth0)\n"
            "  b: 127.0.0.1/8 (lo), 10.9.0.2/24 (eth0)"
        )
        assert error.hint is not None
        assert "network: {subnet: 10.0.0.0/16}" in error.hint
        assert error.exit_code == 4

    def test_public_addresses_unless_allowed(self) -> None:
        a, b = host("a", nic("eth0", "8.8.8.1/24")), host("b", nic("eth0", "8.8.8.2/24"))
        assert refused(AB, a, b).hint == (
            "to use their public network: --allow-public-address (in cluster.yaml: network: "
            "{allow_public_address: true})"
        )
        spec = cluster("a", "b", network=NetworkSpec(allow_public_address=True))
        assert choice(spec, a, b) == {"a": "8.8.8.1 eth0", "b": "8.8.8.2 eth0"}

    def test_private_goes_before_an_allowed_public_one(self) -> None:
        a = host("a", nic("eth0", "8.8.8.1/24"), nic("eth1", "10.0.0.1/24"))
        b = host("b", nic("eth0", "8.8.8.2/24"), nic("eth1", "10.0.0.2/24"))
        spec = cluster("a", "b", network=NetworkSpec(allow_public_address=True))
        assert reason(spec, a, b) == "10.0.0.0/24 is the private one of the shared subnets"

    def test_a_public_address_even_when_named(self) -> None:
        a, b = host("a", nic("eth0", "8.8.8.1/24")), host("b", nic("eth0", "8.8.8.2/24"))
        error = refused(cluster("a", "b", a="8.8.8.1", b="8.8.8.2"), a, b)
        assert (error.host, error.message) == (
            "a",
            "8.8.8.1 is a public address: Ray and NCCL would listen on the internet",
        )
        assert error.hint == (
            "choose a private one, or --allow-public-address (in cluster.yaml: network: "
            "{allow_public_address: true})"
        )

    def test_one_address_on_two_hosts(self) -> None:
        a, b = host("a", nic("eth0", "10.0.0.1/24")), host("b", nic("eth0", "10.0.0.1/24"))
        assert refused(AB, a, b).message == "a and b have the same address 10.0.0.1"

    def test_another_shared_subnet_where_one_holds_an_address_twice(self) -> None:
        fast = nic("eth0", "192.168.0.1/24", speed=100_000)
        a, b = (
            host("a", fast, nic("eth1", "10.0.0.1/24")),
            host("b", fast, nic("eth1", "10.0.0.2/24")),
        )
        assert choice(AB, a, b) == {"a": "10.0.0.1 eth1", "b": "10.0.0.2 eth1"}

    def test_only_a_vpn_is_shared(self) -> None:
        vpn = [replace(nic("wg0", f"10.8.0.{n}/24"), is_virtual=True) for n in (1, 2)]
        a, b = host("a", vpn[0]), host("b", vpn[1])
        assert refused(AB, a, b).hint == "to use it all the same: network: {interface: wg0}"

    def test_loopback_between_hosts(self) -> None:
        error = refused(AB, host("a"), host("b"))
        assert error.message.startswith("the hosts share no private subnet")


class TestOneNode:
    def test_its_best_interface(self) -> None:
        a = host("a", nic("e0", "10.0.0.1/24", speed=1_000), nic("e1", "10.1.0.1/24", speed=10_000))
        assert choice(cluster("a"), a) == {"a": "10.1.0.1 e1"}

    def test_loopback_only_for_this_machine_without_a_network(self) -> None:
        local = ClusterSpec("c", (NodeSpec("localhost", "localhost"),), "localhost")
        assert choice(local, host("localhost")) == {"localhost": "127.0.0.1 lo"}
        networked = host("localhost", nic("eth0", "10.0.0.1/24"))
        assert choice(local, networked) == {"localhost": "10.0.0.1 eth0"}
        refused(cluster("remote"), host("remote"))
