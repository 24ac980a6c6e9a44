"""What Tab offers, asked as a shell asks: through the program, by its environment."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clusterctl import completion

CLUSTER = """\
name: demo
hosts: ["gpu[01-03]", login]
head: gpu01
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    saved = tmp_path / "config" / "infercluster" / "clusters"
    saved.mkdir(parents=True)
    (saved / "demo.yaml").write_text(CLUSTER)
    (saved / "spare.yaml").write_text(CLUSTER.replace("demo", "spare").replace("gpu", "cpu"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("INFERCLUSTER_CLUSTER", raising=False)
    monkeypatch.delenv("INFERCLUSTER_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tab(line: str) -> list[str]:
    """What bash would offer at the end of `line`."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_CLUSTERCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "clusterctl"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_saved_clusters(home: Path) -> None:
    assert completion.clusters("") == ["demo", "spare"]
    assert completion.clusters("s") == ["spare"]


def test_nodes_of_the_cluster_that_is_named(home: Path) -> None:
    assert completion.node_names(None, "spare") == ["cpu01", "cpu02", "cpu03", "login"]


def test_no_cluster_offers_nothing(home: Path) -> None:
    assert completion.node_names(None, None) == []
    assert completion.node_names(None, "unknown") == []


def test_tab_completes_commands(home: Path) -> None:
    assert tab("clusterctl vers") == ["version"]


def test_tab_completes_saved_clusters(home: Path) -> None:
    assert tab("clusterctl ps --cluster s") == ["spare"]


def test_tab_completes_hosts_of_the_line_so_far(home: Path) -> None:
    assert tab("clusterctl logs --cluster demo --hosts gpu01,gpu0") == [
        "gpu01,gpu02",
        "gpu01,gpu03",
    ]


def test_install_completion_writes_for_the_shell(home: Path) -> None:
    """For the shell that it is typed in, which Typer looks for among its parents."""
    typed = f"{shlex.quote(sys.executable)} -m clusterctl --install-completion; exit $?"
    done = subprocess.run(
        ["bash", "-c", typed],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "bash completion installed" in done.stdout
    assert (
        "_CLUSTERCTL_COMPLETE=complete_bash"
        in (home / ".bash_completions" / "clusterctl.sh").read_text()
    )
