"""What RDMA ports ask for: the same rails on every host, and only what holds on all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterctl.fabric import PER_HOST, Derived, Variables, derive
from clusterctl.facts.types import Gid, HostFacts, RdmaPort
from clusterctl.launch import explained_environment
from tests.clusterctl.hosts import host_facts, place, spec_of


def ib(device: str, rate: float = 400.0, **changes: object) -> RdmaPort:
    return replace(RdmaPort(device, 1, "ACTIVE", "InfiniBand", rate, 4096), **changes)  # type: ignore[arg-type]


def roce(device: str, *indices: int, rate: float = 400.0) -> RdmaPort:
    """RoCE v2 over IPv4 at these indices; what every port has besides is no way to route."""
    gids = [Gid(0, "fe80:0000:0000:0000:0e42:a1ff:fe5d:4db8", "RoCE v2", "eth1")]
    gids += [Gid(i, "0000:0000:0000:0000:0000:ffff:0a00:000b", "RoCE v2", "eth1") for i in indices]
    return RdmaPort(device, 1, "ACTIVE", "Ethernet", rate, 4096, tuple(gids))


def hosts(*ports: Sequence[RdmaPort]) -> dict[str, HostFacts]:
    return {
        f"gpu{number:02}": replace(host_facts(f"gpu{number:02}"), rdma_ports=tuple(own))
        for number, own in enumerate(ports, 1)
    }


def values(found: Mapping[str, Variables], node: str = "gpu01") -> dict[str, str]:
    return {name: one.value for name, one in found[node].items()}


def test_infiniband_on_every_host_is_named_exactly_and_pinned() -> None:
    eight = [ib(f"mlx5_{number}") for number in (10, 2, 0)]
    found = derive(hosts(eight, eight))
    assert (
        found["gpu01"]
        == found["gpu02"]
        == {
            "NCCL_IB_HCA": Derived(
                "=mlx5_0:1,mlx5_2:1,mlx5_10:1", "3 active InfiniBand ports of 400 Gbit/s"
            ),
            "UCX_NET_DEVICES": Derived(
                "mlx5_0:1,mlx5_2:1,mlx5_10:1", "3 active InfiniBand ports of 400 Gbit/s"
            ),
            "NCCL_NET": Derived("IB", "every host has InfiniBand: no silent fall back to TCP"),
        }
    )


def test_slower_ports_beside_the_fast_ones_are_for_something_else() -> None:
    own = [ib("mlx5_0"), ib("mlx5_1", rate=100.0), ib("mlx5_2", state="DOWN")]
    assert values(derive(hosts(own, own)))["NCCL_IB_HCA"] == "=mlx5_0:1"


def test_each_host_has_its_own_names() -> None:
    found = derive(hosts([ib("mlx5_0")], [ib("ibp12s0")]))
    assert values(found, "gpu02")["NCCL_IB_HCA"] == "=ibp12s0:1"


@pytest.mark.parametrize(
    ("ports", "index"),
    [
        ([roce("mlx5_0", 3)], "3"),
        ([roce("mlx5_0", 3, 5), roce("mlx5_1", 5)], "5"),
        ([roce("mlx5_0", 3), roce("mlx5_1", 5)], None),
    ],
)
def test_the_gid_index_must_hold_on_every_port_of_the_host(
    ports: list[RdmaPort], index: str | None
) -> None:
    assert values(derive(hosts(ports, ports))).get("NCCL_IB_GID_INDEX") == index


def test_hosts_may_differ_in_their_index() -> None:
    found = derive(hosts([roce("mlx5_0", 3)], [roce("mlx5_0", 5)]))
    assert [values(found, node)["NCCL_IB_GID_INDEX"] for node in found] == ["3", "5"]


@pytest.mark.parametrize(
    "other",
    [
        [],
        [ib("mlx5_0", state="DOWN")],
        [roce("mlx5_0", 3)],
        [roce("mlx5_0")],
        [ib("rdmap0s6", link_layer="Unspecified")],
    ],
)
def test_nothing_is_said_unless_every_host_has_the_same_kind(other: list[RdmaPort]) -> None:
    assert derive(hosts([ib("mlx5_0")], other)) == {"gpu01": {}, "gpu02": {}}


def test_a_roce_port_without_an_address_is_no_rail() -> None:
    own = [roce("mlx5_0", 3), roce("mlx5_bond_0")]
    assert values(derive(hosts(own, own)))["NCCL_IB_HCA"] == "=mlx5_0:1"


PORTS = st.lists(
    st.builds(
        RdmaPort,
        st.sampled_from(["mlx5_0", "mlx5_1", "mlx5_10", "bnxt_re0"]),
        st.integers(1, 2),
        st.sampled_from(["ACTIVE", "DOWN", "INIT"]),
        st.sampled_from(["InfiniBand", "Ethernet"]),
        st.sampled_from([None, 100.0, 400.0]),
        st.none(),
        st.lists(
            st.builds(
                Gid,
                st.integers(0, 3),
                st.just("0000:0000:0000:0000:0000:ffff:0a00:0001"),
                st.sampled_from(["RoCE v2", "IB/RoCE v1"]),
            ),
            max_size=3,
        ).map(tuple),
    ),
    max_size=4,
    unique_by=lambda port: (port.device, port.port),
)


@given(st.lists(PORTS, min_size=1, max_size=3))
def test_what_is_named_is_there_active_and_of_one_kind_everywhere(
    ports: list[list[RdmaPort]],
) -> None:
    own = hosts(*ports)
    found = derive(own)
    assert len({bool(variables) for variables in found.values()}) == 1
    kinds = set()
    for node, variables in found.items():
        named = variables["NCCL_IB_HCA"].value.lstrip("=").split(",") if variables else []
        for word in named:
            (port,) = [p for p in own[node].rdma_ports or () if f"{p.device}:{p.port}" == word]
            assert port.active
            kinds.add((port.link_layer, port.rate_gbit))
            index = variables.get("NCCL_IB_GID_INDEX")
            assert index is None or any(str(g.index) == index.value for g in port.gids)
    assert len(kinds) <= 1


# --- what the user says wins ----------------------------------------------------------------------


FOUND = derive(hosts([roce("mlx5_0", 3)], [roce("mlx5_0", 3)]))["gpu01"]


def told(**env: str) -> dict[str, str]:
    """Variable -> its value and origin, of a node with a RoCE port."""
    own = spec_of("gpu01", env=env)
    explained = explained_environment(own, own.nodes[0], replace(place(), fabric=FOUND))
    return {
        name: f"{one.value} | {one.why}"
        for name, one in explained.items()
        if name.startswith(("NCCL_", "UCX_"))
    }


def test_every_value_has_an_origin() -> None:
    assert told() == {
        "NCCL_SOCKET_IFNAME": "=eth0 | the interface of the node's address",
        "UCX_NET_DEVICES": "mlx5_0:1 | 1 active RoCE port of 400 Gbit/s",
        "NCCL_IB_HCA": "=mlx5_0:1 | 1 active RoCE port of 400 Gbit/s",
        "NCCL_NET": "IB | every host has RoCE: no silent fall back to TCP",
        "NCCL_IB_GID_INDEX": "3 | the RoCE v2 entry of the IPv4 address on mlx5_0:1",
    }


def test_other_ports_of_the_users_have_no_index_of_ours() -> None:
    found = told(NCCL_IB_HCA="mlx5_7")
    assert found["NCCL_IB_HCA"] == "mlx5_7 | env:"
    assert "NCCL_IB_GID_INDEX" not in found
    assert found["UCX_NET_DEVICES"].startswith("eth0")


@pytest.mark.parametrize("off", [{"NCCL_IB_DISABLE": "1"}, {"NCCL_NET": "Socket"}])
def test_a_network_that_is_switched_off_is_not_pinned(off: dict[str, str]) -> None:
    found = told(**off)
    assert found.get("NCCL_NET") == ("Socket | env:" if "NCCL_NET" in off else None)
    assert "NCCL_IB_HCA" not in found


def test_what_is_derived_is_each_hosts_own_word() -> None:
    derived = {*told(), "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "VLLM_HOST_IP"}
    assert derived - {"NCCL_NET"} == set(PER_HOST)
