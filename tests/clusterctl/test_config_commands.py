"""init, config, use, ls and their JSON, as people call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clusterctl import cli, clusters
from clusterctl.spec import ClusterSpec, DevicesSpec, NodeSpec


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))


def test_init_writes_once_unless_forced(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["init", "a", "b,c", "--offline"]) == 0
    assert "- c\n" in Path("cluster.yaml").read_text()
    assert cli.run(["init", "z", "--offline"]) == 2
    assert capsys.readouterr().err == (
        "error: cluster.yaml is there already\nfix: clusterctl init --force replaces it\n"
    )
    assert cli.run(["init", "z", "--offline", "--force", "--name", "other"]) == 0
    assert "name: other\n" in Path("cluster.yaml").read_text()


def test_init_without_hosts_is_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["init"]) == 0
    assert cli.run(["config", "show", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert [host["name"] for host in document["cluster"]["hosts"]] == ["gpu01", "gpu02"]


def test_config_show_prints_a_cluster_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    Path("cluster.yaml").write_text("hosts: [a, b]\nimage: one:1\n")
    assert cli.run(["config", "show"]) == 0
    shown = capsys.readouterr().out
    Path("cluster.yaml").write_text(shown)
    assert cli.run(["config", "show"]) == 0
    assert capsys.readouterr().out == shown


def test_config_show_says_where_values_come_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("cluster.yaml").write_text("hosts: [a, b]\nimage: one:1\n")
    monkeypatch.setenv("INFERCLUSTER_DEVICES", "cpu:3")
    assert cli.run(["config", "show", "--origin", "--image", "two:2"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["image", "two:2", "--image"] in rows
    assert ["devices.count", "3", "INFERCLUSTER_DEVICES"] in rows
    assert ["hosts[1].name", "b", "cluster.yaml:1"] in rows


def test_config_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["required"] == ["hosts"]


def test_an_error_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    Path("cluster.yaml").write_text("hosts: [a]\nimgae: x\n")
    assert cli.run(["config", "show", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "schema_version": 1,
        "error": {
            "code": "config",
            "message": "cluster.yaml:2: unknown key 'imgae'",
            "host": None,
            "hint": "did you mean 'image'?",
        },
    }


def test_use_and_ls(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, devices in (("a", DevicesSpec("gpu", 2, (0, 1))), ("b", DevicesSpec("cpu", 4))):
        clusters.save_current(ClusterSpec(name, (NodeSpec("h", "h"),), "h", devices=devices))
    assert cli.run(["use", "a"]) == 0
    assert capsys.readouterr().out == "a is the current cluster\n"
    assert cli.run(["ls"]) == 0
    files = [str(tmp_path / f"xdg/infercluster/clusters/{name}.yaml") for name in ("a", "b")]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["NAME", "CURRENT", "HEAD", "HOSTS", "DEVICES", "RAY", "FILE"],
        ["a", "yes", "h", "1", "gpu=0,1", "6379", files[0]],
        ["b", "h", "1", "cpu:4", "6379", files[1]],
    ]
    assert cli.run(["ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema_version": 1,
        "clusters": [
            {
                "name": name,
                "current": name == "a",
                "file": file,
                "head": "h",
                "hosts": ["h"],
                "devices": devices,
                "ray_port": 6379,
                "error": None,
            }
            for name, file, devices in zip("ab", files, ("gpu=0,1", "cpu:4"), strict=True)
        ],
    }
    Path(files[1]).write_text("hosts: 5")
    assert cli.run(["ls"]) == 0
    assert "hosts must be a list" in capsys.readouterr().out
