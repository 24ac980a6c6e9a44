"""`doctor` as a command: the shape of --json, the order of findings, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clusterctl.doctor.check import (
    Evidence,
    Finding,
    document,
    exit_code,
    likeliest_first,
    troubles,
)
from clusterctl.errors import Unreachable
from clusterctl.events import silent
from clusterctl.examination import examine
from tests.clusterctl.hosts import Bed, spec_of
from tests.fakes import fake_session

FAILED = Finding("a.b", "disk-full", "gpu01", "fail", "full", 0.5)
LIKELIER = Finding(None, "shm-too-small", None, "fail", "small", 0.9)
ODD = Finding("c.d", None, "gpu01", "warn", "odd")
DARK = Finding("e.f", None, "gpu01", "unknown", "dark")
FINE = Finding("g.h", None, "gpu01", "ok", "fine")
AWAY = Finding("i.j", None, "gpu01", "skip", "no GPU")


def test_the_document_has_one_shape() -> None:
    seen = Evidence("No space left on device", "/var/log/x", 7)
    one = Finding("a.b", "disk-full", "gpu01", "fail", "full", 0.5, seen, {"disk": "/"}, "df /")
    assert document([one]) == {
        "schema_version": 1,
        "findings": [
            {
                "check": "a.b",
                "cause": "disk-full",
                "host": "gpu01",
                "verdict": "fail",
                "message": "full",
                "confidence": 0.5,
                "evidence": {"file": "/var/log/x", "line": 7, "text": "No space left on device"},
                "values": {"disk": "/"},
                "fix": "df /",
            }
        ],
    }


def test_failures_come_first_and_the_likelier_of_them_before_the_others() -> None:
    everything = [AWAY, FINE, DARK, ODD, FAILED, LIKELIER]
    assert likeliest_first(everything) == [LIKELIER, FAILED, ODD, DARK, AWAY, FINE]
    assert troubles(everything) == [DARK, ODD, FAILED, LIKELIER]


@pytest.mark.parametrize(
    ("found", "code", "strict"),
    [
        ([], 0, 0),
        ([FINE, AWAY], 0, 0),
        ([ODD], 0, 1),
        ([DARK], 0, 1),
        ([FINE, FAILED], 1, 1),
    ],
)
def test_exit_codes(found: list[Finding], code: int, strict: int) -> None:
    assert exit_code(found) == code
    assert exit_code(found, strict=True) == strict


def test_a_host_that_cannot_be_reached_is_a_finding(tmp_path: Path) -> None:
    lost = Unreachable("connection refused", host="gpu02", hint="ssh gpu02")
    spec = spec_of("gpu01", "gpu02")
    bed = Bed(tmp_path, "gpu01")
    session = fake_session(spec, transports=bed.transports, failures={"gpu02": lost})
    found = troubles(examine(session, silent).findings)
    [only] = [one for one in found if one.verdict == "fail"]
    assert (only.check, only.host, only.fix) == ("ssh.reach", "gpu02", "ssh gpu02")
    assert json.dumps(only.document())
