"""Hosts that try each other: the probe for real over loopback, and what is made of its answers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterctl.doctor.check import Finding, run_checks, troubles
from clusterctl.doctor.isolate import Blame, Way, isolate
from clusterctl.doctor.pairs import PAIR_CHECKS, Pairs, Tried
from clusterctl.remote import pair_probe

HOSTS = ("gpu01", "gpu02", "gpu03", "gpu04")
WAYS = tuple(permutations(HOSTS, 2))
FINE = Tried({6379: "ok", 40001: "ok"}, 100, 100, 1500, None, 9000.0)

# --- who is to blame -----------------------------------------------------------------------------


@given(st.data())
def test_bad_hosts_among_three_good_ones_are_found_exactly(data: st.DataObject) -> None:
    names = [f"h{number}" for number in range(data.draw(st.integers(4, 9)))]
    bad = set(data.draw(st.lists(st.sampled_from(names[3:]), unique=True)))
    tried = list(permutations(names, 2))
    blame = isolate({way for way in tried if bad & set(way)}, tried)
    assert (set(blame.hosts), blame.receivers, blame.senders, blame.ways) == (bad, (), (), ())


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ([], Blame()),
        ([("gpu01", "gpu02")], Blame(ways=(("gpu01", "gpu02"),))),
        ([(one, "gpu03") for one in HOSTS if one != "gpu03"], Blame(receivers=("gpu03",))),
        ([("gpu03", one) for one in HOSTS if one != "gpu03"], Blame(senders=("gpu03",))),
    ],
)
def test_directions_are_told_apart(bad: list[Way], expected: Blame) -> None:
    assert isolate(bad, WAYS) == expected


def test_of_two_hosts_nobody_can_say_which_end_it_is() -> None:
    ways = [("a", "b"), ("b", "a")]
    assert isolate(ways, ways) == Blame(ways=(("a", "b"), ("b", "a")))


# --- what is said --------------------------------------------------------------------------------


def judged(changed: Mapping[Way, Tried], **more: Any) -> list[Finding]:
    pairs = Pairs(
        {way: changed.get(way, FINE) for way in WAYS},
        uses={6379: "Ray's control store"},
        mtu=dict.fromkeys(HOSTS, 1500),
        speed_mbit=dict.fromkeys(HOSTS, 10_000),
    )
    return troubles(run_checks(PAIR_CHECKS, [replace(pairs, **more)]))


def around(host: str, seen: Tried) -> dict[Way, Tried]:
    return {way: seen for way in WAYS if host in way}


def test_a_healthy_cluster_has_no_findings() -> None:
    assert judged({}) == []


@pytest.mark.parametrize(
    ("check", "verdict", "seen", "says"),
    [
        (
            "net.pair-tcp",
            "fail",
            replace(FINE, tcp={6379: "ok", 40001: "no answer within 4 s"}),
            "TCP does not pass to and from all others: ports 40001 (any free port): no answer "
            "within 4 s",
        ),
        (
            "net.pair-loss",
            "fail",
            replace(FINE, came=81),
            "19 of 100 small packets were lost to and from all others",
        ),
        (
            "net.pair-loss",
            "warn",
            replace(FINE, came=97),
            "3 of 100 small packets were lost to and from all others",
        ),
        (
            "net.path-mtu",
            "fail",
            replace(FINE, largest=1400),
            "packets of more than 1400 bytes vanish to and from all others; the interface sends "
            "1500",
        ),
        (
            "net.path-mtu",
            "warn",
            replace(FINE, largest=1400, announced=1400),
            "the path takes 1400 bytes, the interface 1500: TCP adapts, RDMA does not (to and "
            "from all others)",
        ),
        (
            "net.pair-speed",
            "warn",
            replace(FINE, mbit=19.0),
            "19 Mbit/s to and from all others; half of the ways do 4510 or more",
        ),
    ],
)
def test_the_bad_host_among_good_ones_is_named(
    check: str, verdict: str, seen: Tried, says: str
) -> None:
    (found,) = judged(around("gpu04", seen))
    assert (found.check, found.verdict, found.host, found.message) == (
        check,
        verdict,
        "gpu04",
        says,
    )
    assert found.fix


def test_a_lost_packet_in_a_hundred_is_no_finding() -> None:
    assert judged(around("gpu04", replace(FINE, came=99))) == []


def test_an_address_that_another_machine_answers_at() -> None:
    seen = replace(FINE, tcp={6379: "other gpu02", 40001: "ok"})
    (found,) = judged({("gpu01", "gpu04"): seen})
    assert (found.check, found.host) == ("net.address-taken", "gpu04")
    assert found.message == "gpu02 answers at its address"


def test_two_slow_hosts_alone_are_held_against_their_link() -> None:
    ways = {("gpu01", "gpu02"): replace(FINE, mbit=20.0), ("gpu02", "gpu01"): FINE}
    pairs = Pairs(
        ways, mtu=dict.fromkeys(HOSTS, 1500), speed_mbit={"gpu01": 10_000, "gpu02": 10_000}
    )
    (found,) = troubles(run_checks(PAIR_CHECKS, [pairs]))
    assert (found.check, found.host, found.values["to"]) == ("net.pair-speed", "gpu01", "gpu02")


def test_what_could_not_be_tried_is_unknown() -> None:
    no_udp = replace(FINE, came=0, largest=None)
    found = judged({WAYS[0]: no_udp}, silent={"gpu09": ("there is no python3 on the host", "x")})
    assert [(one.check, one.verdict) for one in found] == [
        ("net.pairs-tried", "unknown"),
        ("net.pair-loss", "unknown"),
    ]


# --- the probe itself ----------------------------------------------------------------------------


class Running:
    """One probe as a process, on a loopback address of its own."""

    def __init__(self, name: str, address: str, ports: list[int]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", pair_probe.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.name, self.address, self.ports = name, address, ports
        self.says = self.ask({"name": name, "address": address, "ports": ports})

    def ask(self, value: object) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def as_target(self, *, name: str = "", mtu: int = 1500) -> dict[str, Any]:
        taken = [int(port) for port, how in self.says["ports"].items() if how == "taken"]
        where = {"address": self.address, "tcp": self.says["tcp"], "udp": self.says["udp"]}
        mine = {"name": name or self.name, "ports": self.ports, "taken": taken, "mtu": mtu}
        return where | mine

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


@pytest.fixture
def free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.2", 0))
        return int(holder.getsockname()[1])


def test_two_hosts_reach_each_other_whole(free_port: int) -> None:
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(Running(f"h{n}", f"127.0.0.{n}", [free_port])) for n in (2, 3)
        )
        (said,) = one.ask([two.as_target(mtu=9000)])
        two.ask([])
    tcp = {str(free_port): "ok", str(two.says["tcp"]): "ok"}
    assert (said["peer"], said["tcp"], said["came"], said["largest"]) == ("h3", tcp, 100, 9000)
    assert said["mbit"] > 0


def test_a_port_in_use_counts_as_reached_and_another_name_does_not(free_port: int) -> None:
    with ExitStack() as stack:
        holder = stack.enter_context(socket.socket())
        holder.bind(("127.0.0.3", free_port))
        holder.listen()
        one = stack.enter_context(Running("h2", "127.0.0.2", []))
        two = stack.enter_context(Running("h3", "127.0.0.3", [free_port]))
        assert two.says["ports"] == {str(free_port): "taken"}
        (said,) = one.ask([two.as_target(name="h9")])
        two.ask([])
    assert said["tcp"] == {str(free_port): "ok", str(two.says["tcp"]): "other h3"}


def test_a_host_that_is_gone_is_said_to_refuse() -> None:
    with Running("h2", "127.0.0.2", []) as one:
        gone = {"name": "h3", "address": "127.0.0.3", "tcp": 9, "udp": 9}
        (said,) = one.ask([{**gone, "ports": [], "taken": [], "mtu": 1500}])
    assert said["tcp"] == {"9": "Connection refused"}
    assert (said["came"], said["largest"], said["mbit"]) == (0, None, None)
