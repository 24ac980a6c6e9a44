"""Interfaces and listeners, from each of the tools that may be there."""

from __future__ import annotations

import json

import pytest

from clusterctl.facts.network import (
    connected,
    from_proc,
    is_virtual,
    local_addresses,
    parse_interfaces,
    parse_ip_addr,
    parse_listeners,
    parse_proc_tcp,
    parse_ss,
    parse_sys_net,
)
from clusterctl.facts.rdma import parse_rdma
from clusterctl.facts.sections import Section
from clusterctl.facts.types import Address, Interface, Listener

IP_ADDR = json.dumps(
    [
        {
            "ifname": "ens1f0np0",
            "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
            "mtu": 9000,
            "address": "0c:42:a1:00:00:01",
            "addr_info": [{"family": "inet", "local": "10.1.0.7", "prefixlen": 22}],
        },
        {
            "ifname": "eno1",
            "flags": ["NO-CARRIER", "BROADCAST", "MULTICAST", "UP"],
            "mtu": 1500,
            "address": "0c:42:a1:00:00:02",
            "addr_info": [{"family": "inet", "local": "10.2.0.7", "prefixlen": 24}],
        },
        {},
        {
            "ifname": "tun0",
            "flags": ["POINTOPOINT", "UP", "LOWER_UP"],
            "mtu": 1420,
            "addr_info": [
                {"family": "inet", "local": "10.8.0.2", "prefixlen": 32, "peer": "10.8.0.1"}
            ],
        },
    ]
)
SYS_NET = (
    "ens1f0np0\t0x1003\t1\t9000\t200000\t0c:42:a1:00:00:01\n"
    "eno1\t0x1003\t0\t1500\t-1\t0c:42:a1:00:00:02\n"
    "ib0\t0x1003\t1\t4092\t\t00:00:10:86:fe:80\n"
)
ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
ens1f0np0\t00000000\t0100010A\t0003\t0\t0\t0\t00000000\t0\t0\t0
ens1f0np0\t0000010A\t00000000\t0001\t0\t0\t0\t00FCFFFF\t0\t0\t0
"""
FIB = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.1.0.7
        /32 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 10.1.3.255
        /32 link BROADCAST
Local:
     |-- 10.1.0.7
        /32 host LOCAL
"""
INET6 = "fe80000000000000000000fffe000001 02 40 20 80 ens1f0np0\n"


def test_ip_addr() -> None:
    wanted, unplugged, tunnel = parse_ip_addr(IP_ADDR)
    assert wanted == Interface(
        "ens1f0np0", True, (Address("10.1.0.7", 22),), 9000, None, "0c:42:a1:00:00:01"
    )
    assert not unplugged.up
    assert (tunnel.is_virtual, tunnel.mac) == (True, "")


def sections(**given: Section) -> dict[str, Section]:
    names = ("ip_addr", "proc_addr", "sys_net", "ss", "proc_tcp")
    return {name: given.get(name, Section()) for name in names}


def test_speed_and_rdma_device_are_joined_to_the_addresses() -> None:
    given = sections(ip_addr=Section(IP_ADDR, "", 0), sys_net=Section(SYS_NET, "", 0))
    fast, slow, _ = parse_interfaces(given, {"ens1f0np0": "mlx5_0"})
    assert (fast.speed_mbit, fast.rdma_device) == (200000, "mlx5_0")
    assert (slow.speed_mbit, slow.rdma_device) == (None, None)


def test_an_equal_name_with_another_mac_is_another_interface() -> None:
    """/sys may belong to another network namespace than the addresses."""
    foreign = SYS_NET.replace("0c:42:a1:00:00:01", "0c:42:a1:ff:ff:ff")
    given = sections(ip_addr=Section(IP_ADDR, "", 0), sys_net=Section(foreign, "", 0))
    assert parse_interfaces(given, {})[0].speed_mbit is None


def test_without_ip_the_kernels_own_tables_say_the_same() -> None:
    given = sections(
        ip_addr=Section("", "sh: 1: ip: not found", 127),
        proc_addr=Section(f"{ROUTE}\n{FIB}\n{INET6}", "", 0),
        sys_net=Section(SYS_NET, "", 0),
    )
    assert parse_interfaces(given, {})[0] == Interface(
        "ens1f0np0",
        True,
        (Address("10.1.0.7", 22), Address("fe80::ff:fe00:1", 64)),
        9000,
        200000,
        "0c:42:a1:00:00:01",
    )


def test_kernel_tables() -> None:
    assert local_addresses(FIB) == ["10.1.0.7", "127.0.0.1"]
    assert [(name, str(network)) for name, network in connected(ROUTE)] == [
        ("ens1f0np0", "10.1.0.0/22")
    ]
    assert from_proc("", {}) == ()


def test_a_speed_that_is_not_told_is_unknown() -> None:
    seen = parse_sys_net(SYS_NET)
    assert [seen[name].speed_mbit for name in ("ens1f0np0", "eno1", "ib0")] == [200000, None, None]
    assert [seen[name].up for name in ("ens1f0np0", "eno1", "ib0")] == [True, False, True]


@pytest.mark.parametrize(
    "name", ["docker0", "br-1f2e3d", "virbr0", "veth12ab", "tailscale0", "cali123", "wg0", "cni0"]
)
def test_virtual(name: str) -> None:
    assert is_virtual(name)


@pytest.mark.parametrize(
    "name", ["eth0", "enp1s0f1np1", "ib0", "bond0", "br0", "ens3", "wlp2s0", "lo"]
)
def test_not_virtual(name: str) -> None:
    assert not is_virtual(name)


def test_rdma() -> None:
    """A bond stands on its device by the GID table, a plain port beside it, an EFA on none."""
    text = "mlx5_0 ens1f0np0 ens1f0np0\nmlx5_bond_0 ens2f0 ens2f1 bond0\nrdmap0s6\n"
    assert parse_rdma(text) == (
        ("mlx5_0", "mlx5_bond_0", "rdmap0s6"),
        {
            "ens1f0np0": "mlx5_0",
            "ens2f0": "mlx5_bond_0",
            "ens2f1": "mlx5_bond_0",
            "bond0": "mlx5_bond_0",
        },
    )
    assert parse_rdma("") == ((), {})


def test_ss() -> None:
    text = """\
State  Recv-Q Send-Q Local Address:Port  Peer Address:Port Process
LISTEN 0      128          0.0.0.0:22         0.0.0.0:*    users:(("sshd",pid=1,fd=3))
LISTEN 0      4096   127.0.0.53%lo:53         0.0.0.0:*    users:(("systemd-resolve",pid=9,fd=14))
LISTEN 0      511                *:6379             *:*
LISTEN 0      511           [::1]:8265          [::]:*    users:(("ray: a b",pid=7),("x",pid=8))
"""
    assert parse_ss(text) == (
        Listener("0.0.0.0", 22, "sshd"),
        Listener("127.0.0.53", 53, "systemd-resolve"),
        Listener("::", 6379, None),
        Listener("::1", 8265, "ray: a b"),
    )


PROC_TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1FA3 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   1: 0100007F:CC62 0100007F:1FA3 01 00000000:00000000 03:0000105A 00000000     0        0 0 3 0
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0
   1: 0000000000000000FFFF00000B00000A:18EB 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0
"""


def test_proc_tcp() -> None:
    assert parse_proc_tcp(PROC_TCP) == (
        Listener("127.0.0.1", 8099),
        Listener("::", 22),
        Listener("::ffff:a00:b", 6379),
    )


def test_listeners_that_cannot_be_read_are_unknown() -> None:
    assert parse_listeners(sections()) is None
    assert parse_listeners(sections(ss=Section("State ...\n", "", 0))) == ()
    assert parse_listeners(sections(proc_tcp=Section(PROC_TCP, "", 1))) == parse_proc_tcp(PROC_TCP)
