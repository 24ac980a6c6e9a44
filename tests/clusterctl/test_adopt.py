"""A cluster learnt from its head."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from clusterctl.adopt import adopt, from_here
from clusterctl.config import spec_to_dict
from clusterctl.containers import LABEL_CLUSTER, LABEL_ROLE, ContainerSpec
from clusterctl.errors import ClusterctlError
from clusterctl.hoststate import ABSENT
from clusterctl.links import HostLink
from clusterctl.spec import ClusterSpec, NodeSpec, SshSpec
from tests.fakes import FakeRuntime, Says, ScriptedTransport

THEIRS = ClusterSpec(
    "llama",
    (
        NodeSpec("gpu01", "alias-of-theirs", "bob", identity="/home/bob/id"),
        NodeSpec("gpu02", "10.0.0.2", identity="/home/bob/id"),
    ),
    "gpu01",
    ssh=SshSpec("/home/bob/config", "/home/bob/known"),
)
OURS = SshSpec("/home/alice/config")
HERE = NodeSpec("10.0.0.1", "10.0.0.1", "alice", 2222)


def head(*clusters: str, role: str = "head", saved: str | Says = "") -> HostLink:
    runtime = FakeRuntime("10.0.0.1", images=["i"])
    for cluster in clusters:
        labels = {LABEL_CLUSTER: cluster, LABEL_ROLE: role}
        runtime.create(ContainerSpec(f"clusterctl-{cluster}-gpu01", "i", ("x",), labels=labels))
    return HostLink(HERE, ScriptedTransport("10.0.0.1", {"sh": saved}), runtime)


def test_the_spec_comes_over_and_the_ssh_files_are_our_own() -> None:
    spec = adopt(head("llama", saved=json.dumps(spec_to_dict(THEIRS))), None, OURS)
    assert spec == replace(
        THEIRS,
        nodes=(
            NodeSpec("gpu01", "10.0.0.1", "alice", 2222),
            NodeSpec("gpu02", "10.0.0.2"),
        ),
        ssh=OURS,
    )
    assert from_here(spec, HERE, OURS) == spec


def test_one_of_several_is_named() -> None:
    with pytest.raises(ClusterctlError) as caught:
        adopt(head("llama", "qwen"), None, OURS)
    assert caught.value.message == "this host is the head of llama, qwen"
    assert caught.value.hint == "clusterctl adopt --head 10.0.0.1 --cluster llama"
    saved = json.dumps(spec_to_dict(THEIRS))
    assert adopt(head("llama", "qwen", saved=saved), "llama", OURS).name == "llama"


def test_a_worker_is_no_head() -> None:
    with pytest.raises(ClusterctlError, match="the head of no cluster") as caught:
        adopt(head("llama", role="worker"), None, OURS)
    assert caught.value.hint == "name the host that `up` was given as --head"


def test_a_head_whose_spec_is_gone() -> None:
    with pytest.raises(ClusterctlError, match="the cluster llama runs here, but nothing says"):
        adopt(head("llama", saved=Says(exit_code=ABSENT)), None, OURS)
