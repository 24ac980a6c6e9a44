"""scripts/record_fixture: what it replaces, and that what belonged together still does."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from clusterctl.facts.gather import parse_facts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def record() -> ModuleType:
    loader = SourceFileLoader("record_fixture", str(ROOT / "scripts/record_fixture"))
    spec = spec_from_loader("record_fixture", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_names_addresses_and_serials_are_replaced_alike_everywhere(record: ModuleType) -> None:
    text = """\
corp-gpu7
bob /home/bob
198.18.7.3      STREAM corp-gpu7
"address":"0c:42:a1:11:22:33" "local":"198.18.7.3" "local":"2001:db8::7" 00:00:00:00:00:00
eth0\t000712C6\t00000000
eth0 0c:42:a1:11:22:33
     |-- 198.18.7.3
20010db8000000000000000000000007 02 40 00 80 eth0
GPU-7a63f54d-5b69-c5f1-a711-2bca4bbe8df7 127.0.0.1 ::1
"""
    assert (
        record.scrub(text, "corp-gpu7", "bob", "dgx")
        == """\
dgx
alice /home/alice
10.0.0.3      STREAM dgx
"address":"02:00:00:00:00:01" "local":"10.0.0.3" "local":"fd00::1" 00:00:00:00:00:00
eth0\t0000000A\t00000000
eth0 02:00:00:00:00:01
     |-- 10.0.0.3
fd000000000000000000000000000001 02 40 00 80 eth0
GPU-00000001-0000-0000-0000-000000000000 127.0.0.1 ::1
"""
    )


def test_a_scrubbed_recording_reads_the_same(record: ModuleType) -> None:
    """Names and addresses are gone, all else is as it was."""
    text = (ROOT / "tests/data/facts/h200.txt").read_text()
    before = parse_facts("x", text, sent=0.0, received=0.0)
    after = parse_facts(
        "x", record.scrub(text, before.host.hostname, "root", "other"), sent=0.0, received=0.0
    )
    assert after.host.hostname == "other"
    assert after.gpu == before.gpu
    assert [i.name for i in after.interfaces] == [i.name for i in before.interfaces]
    assert [[a.prefix for a in i.addresses] for i in after.interfaces] == [
        [a.prefix for a in i.addresses] for i in before.interfaces
    ]
