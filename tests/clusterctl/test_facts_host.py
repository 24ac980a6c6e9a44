"""The machine itself, from texts of other machines than those recorded."""

from __future__ import annotations

import pytest

from clusterctl.facts.host import (
    clock_offset,
    parse_cpu_model,
    parse_disks,
    parse_limits,
    parse_os,
    parse_resolved,
)
from clusterctl.facts.sections import Section
from clusterctl.facts.types import Disk


def said(text: str, exit_code: int = 0) -> Section:
    return Section(text, "", exit_code)


def test_os() -> None:
    assert parse_os('NAME="Rocky"\nPRETTY_NAME="Rocky Linux 9.4 (Blue Onyx)"\n') == (
        "Rocky Linux 9.4 (Blue Onyx)"
    )
    assert parse_os("NAME=x\n") is None


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("model name\t: Intel(R) Xeon(R) Platinum 8480+\n", "Intel(R) Xeon(R) Platinum 8480+"),
        ("Model name:                           Neoverse-V2\n", "Neoverse-V2"),
        ("", None),
    ],
)
def test_cpu_model(text: str, model: str | None) -> None:
    assert parse_cpu_model(said(text)) == model


def test_limits_are_in_the_units_of_ulimit() -> None:
    text = """\
Max stack size            8388608              unlimited            bytes
Max processes             96365                96365                processes
Max open files            1024                 1048576              files
Max locked memory         unlimited            unlimited            bytes
"""
    assert parse_limits(text) == (
        ("memlock", "unlimited"),
        ("nofile", "1024"),
        ("stack", "8192"),
        ("nproc", "96365"),
    )


def test_disks() -> None:
    """A device or a mount point with a blank in it, and a path that df could not answer for."""
    text = (
        "/var/lib/docker\t/dev/mapper/a b  1000  400  600  40% /var/lib/my docker\n"
        "/dev/shm\t\n"
        "/\toverlay 2000 500 1500 25% /\n"
    )
    assert parse_disks(text) == (
        Disk("/var/lib/docker", 1024000, 614400),
        Disk("/", 2048000, 1536000),
    )


def test_resolution() -> None:
    ahosts = "127.0.1.1       STREAM gpu01\n127.0.1.1       DGRAM\n10.0.0.1        STREAM\n"
    assert parse_resolved(said(ahosts)) == ("127.0.1.1", "10.0.0.1")
    assert parse_resolved(said("", 2)) == ()
    assert parse_resolved(said("", 127)) is None


class TestClock:
    def test_the_way_there_and_back_is_taken_out(self) -> None:
        """One second each way, ten for the probe, and a clock that is 100 ahead."""
        first, last = said("1101.0\n"), said("1111.0\n")
        assert clock_offset(first, last, sent=1000.0, received=1012.0) == 100.0

    def test_a_date_without_nanoseconds(self) -> None:
        first, last = said("1000.%N\n"), said("1002.%N\n")
        assert clock_offset(first, last, sent=1000.0, received=1002.0) == 0.0

    def test_no_date_is_unknown(self) -> None:
        assert clock_offset(said("", 127), said("", 127), sent=0.0, received=0.0) is None
