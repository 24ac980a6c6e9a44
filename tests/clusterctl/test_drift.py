"""What has changed since `up`, found on hosts in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clusterctl import cluster, drift
from clusterctl.containers import ContainerSpec
from clusterctl.drift import Drift, differences, of_revision, of_software, of_weights
from clusterctl.errors import NotReady
from clusterctl.events import silent
from clusterctl.serving.modelfiles import ModelFiles
from clusterctl.serving.records import Deployment
from clusterctl.spec import ClusterSpec, NodeSpec
from tests.clusterctl.hosts import IMAGE, Bed, spec_of

SPEC = spec_of("gpu01", "gpu02")
TINY = Deployment("tiny", "/m", "native", 1, 1, "ready", "http://10.0.0.1:8000/v1")


@pytest.fixture(autouse=True)
def _own_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    made = Bed(tmp_path / "hosts", "gpu01", "gpu02")
    cluster.up(made.session(SPEC), report=silent, approve=lambda *_: None, check_sanity=False)
    return made


def found(bed: Bed, spec: ClusterSpec = SPEC) -> list[tuple[str, str, str | None, str | None]]:
    return [(one.host, one.what, one.was, one.now) for one in drift.look(bed.session(spec), silent)]


def test_what_was_just_made_has_not_drifted(bed: Bed) -> None:
    assert found(bed) == []


def test_nothing_was_ever_made(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="no `up` of test is on record"):
        found(Bed(tmp_path / "others", "gpu01", "gpu02"))


def test_every_variable_and_field_is_named(bed: Bed) -> None:
    node = replace(SPEC.nodes[1], env={"NCCL_DEBUG": "INFO"})
    changed = replace(SPEC, nodes=(SPEC.nodes[0], node), model_dirs=("/models",))
    assert found(bed, changed) == [
        ("gpu01", "mounts", "-", "MountSpec(source='/models', target='/models', read_only=True)"),
        ("gpu02", "env NCCL_DEBUG", None, "INFO"),
        ("gpu02", "mounts", "-", "MountSpec(source='/models', target='/models', read_only=True)"),
    ]


def test_a_host_whose_facts_changed_is_told_from_a_file_that_did(bed: Bed) -> None:
    transport = bed.transports["gpu02"]
    transport._facts = transport._facts.replace("10.0.0.2", "10.0.0.9")
    assert ("gpu02", "addresses or devices", "as at up", "what was asked for has changed") in (
        found(bed)
    )


def test_an_image_that_was_tagged_anew(bed: Bed) -> None:
    bed.runtimes["gpu02"].images[IMAGE] = "sha256:0123456789abcdef"
    assert [(one[0], one[1], one[3]) for one in found(bed)] == [("gpu02", "image", "0123456789ab")]


def test_a_container_that_stopped_or_went(bed: Bed) -> None:
    (box,) = bed.runtimes["gpu02"].boxes.values()
    box.seen = replace(box.seen, state="exited", exit_code=1)
    assert ("gpu02", "container", "running", "exited") in found(bed)
    bed.runtimes["gpu02"].boxes.clear()
    assert ("gpu02", "container", None, None) in found(bed)


def test_a_node_that_is_new(tmp_path: Path) -> None:
    bed = Bed(tmp_path / "more", "gpu01", "gpu02", "gpu03")
    cluster.up(bed.session(SPEC), report=silent, approve=lambda *_: None, check_sanity=False)
    more = replace(SPEC, nodes=(*SPEC.nodes, NodeSpec("gpu03", "gpu03")))
    assert found(bed, more) == [("gpu03", "container", None, None)]


def test_software_is_held_against_what_was_noted() -> None:
    was: dict[str, str | None] = {"driver": "580.65", "kernel": "6.1", "docker": "28.0"}
    now = {**was, "driver": "580.95"}
    (one,) = of_software("gpu01", was, now)
    assert (one.what, one.was, one.now) == ("driver", "580.65", "580.95")
    assert list(of_software("gpu01", {}, now)) == []


def test_weights_are_held_against_those_it_was_started_with() -> None:
    files = ModelFiles(True, "c0ffee", {"model.safetensors": 100})
    other = ModelFiles(True, "c0ffee", {"model.safetensors": 99})
    gone = ModelFiles(False, "", {})
    assert list(of_weights("gpu01", TINY, files.fingerprint, files)) == []
    for now in (other, gone):
        (one,) = of_weights("gpu01", TINY, files.fingerprint, now)
        assert isinstance(one, Drift)
        assert one.now == (now.fingerprint if now.exists else None)


def test_the_revision_of_a_hub_id_is_held_against_the_one_it_loaded() -> None:
    old, new = "a" * 40, "b" * 40
    assert list(of_revision("gpu01", TINY, old, old)) == []
    assert list(of_revision("gpu01", TINY, None, new)) == []  # not known what it loaded
    (moved,) = of_revision("gpu01", TINY, old, new)
    assert (moved.what, moved.was, moved.now) == ("revision of tiny", "a" * 12, "b" * 12)
    assert f"--revision {old}" in moved.fix
    (gone,) = of_revision("gpu01", TINY, old, None)
    assert gone.now is None


def test_a_command_line_shows_only_what_differs() -> None:
    was = ContainerSpec("c", "image", ("ray", "start", "--port=6379"), labels={"a": "1"})
    now = replace(was, command=("ray", "start", "--port=6380"), labels={})
    assert differences(was, now) == [("command", "--port=6379", "--port=6380")]
