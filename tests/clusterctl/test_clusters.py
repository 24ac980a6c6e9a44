"""Saved clusters: written whole, private, found again, one of them current."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from clusterctl import clusters
from clusterctl.config import Flags, load_spec
from clusterctl.errors import ConfigError
from clusterctl.spec import ClusterSpec, NodeSpec, SshSpec

A = ClusterSpec("a", (NodeSpec("gpu01", "10.0.0.1", env={"X": "${not} a variable"}),), "gpu01")
B = replace(A, name="b")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}


def test_what_up_saved_is_what_other_commands_load(env: dict[str, str], tmp_path: Path) -> None:
    file = clusters.save_current(A, env)
    loaded = load_spec(Flags(), env, tmp_path)
    assert (loaded.spec, loaded.file) == (A, file)
    assert file == tmp_path / "xdg/infercluster/clusters/a.yaml"


def test_files_are_this_users_alone(env: dict[str, str], tmp_path: Path) -> None:
    file = clusters.save_current(A, env)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    files = {path.name for path in (tmp_path / "xdg").rglob("*") if path.is_file()}
    assert files == {"a.yaml", "current"}


def test_the_last_one_up_is_current_until_use(env: dict[str, str], tmp_path: Path) -> None:
    clusters.save_current(A, env)
    clusters.save_current(B, env)
    assert load_spec(Flags(), env, tmp_path).spec.name == "b"
    clusters.use("a", env)
    assert load_spec(Flags(), env, tmp_path).spec.name == "a"
    assert [(c.name, c.current) for c in clusters.saved(env)] == [("a", True), ("b", False)]


def test_named_by_flag_or_variable(env: dict[str, str], tmp_path: Path) -> None:
    clusters.save_current(A, env)
    clusters.save_current(B, env)
    assert load_spec(Flags(cluster="a"), env, tmp_path).spec.name == "a"
    assert load_spec(Flags(), {**env, "INFERCLUSTER_CLUSTER": "a"}, tmp_path).spec.name == "a"


def test_cluster_yaml_here_goes_before_the_current_one(env: dict[str, str], tmp_path: Path) -> None:
    clusters.save_current(A, env)
    (tmp_path / "cluster.yaml").write_text("name: here\nhosts: [x]")
    assert load_spec(Flags(), env, tmp_path).spec.name == "here"
    assert load_spec(Flags(cluster="a"), env, tmp_path).spec.name == "a"


def test_hosts_given_by_flags_do_not_build_on_the_current_one(
    env: dict[str, str], tmp_path: Path
) -> None:
    clusters.save_current(replace(A, image="special:1"), env)
    assert load_spec(Flags(head="new"), env, tmp_path).spec == ClusterSpec(
        "new", (NodeSpec("new", "new"),), "new"
    )


def test_trust_in_new_host_keys_is_not_kept(env: dict[str, str], tmp_path: Path) -> None:
    clusters.save_current(replace(A, ssh=SshSpec("/c", "/k", accept_new_host_keys=True)), env)
    assert load_spec(Flags(), env, tmp_path).spec.ssh == SshSpec("/c", "/k")


def test_an_unknown_name_is_refused_with_the_nearest(env: dict[str, str]) -> None:
    clusters.save(replace(A, name="llama-prod"), env)
    with pytest.raises(ConfigError, match="no cluster 'lama-prod' is saved") as caught:
        clusters.use("lama-prod", env)
    assert caught.value.hint == "did you mean 'llama-prod'?"
    assert clusters.saved(env) == [
        clusters.SavedCluster(
            "llama-prod",
            Path(env["XDG_CONFIG_HOME"], "infercluster/clusters/llama-prod.yaml"),
            False,
        )
    ]


def test_a_name_cannot_lead_elsewhere(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("hosts: [x]")
    with pytest.raises(ConfigError, match="no cluster"):
        clusters.use("../../../secret", env)
