"""What `up` decides for each node, and the container it asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clusterctl.containers import (
    LABEL_CLUSTER,
    LABEL_GPUS,
    LABEL_NODE,
    LABEL_ROLE,
    LABEL_SPEC_HASH,
    LABEL_VERSION,
    Ulimit,
)
from clusterctl.facts.types import Gpu, GpuFacts
from clusterctl.launch import (
    LaunchPlan,
    Place,
    container_for,
    node_environment,
    own_directories,
    plan,
)
from clusterctl.runtime import SeenContainer
from clusterctl.spec import ClusterSpec, DevicesSpec, MountSpec, NodeSpec, ProxySpec, RaySpec
from tests.clusterctl.hosts import IMAGE, host_facts, place, spec_of

TWO = spec_of("gpu01", "gpu02")


def places(spec: ClusterSpec = TWO, **seen: SeenContainer) -> dict[str, Place]:
    return {
        node.name: place(
            node.name,
            f"10.0.0.{index + 1}",
            containers=(seen[node.name],) if node.name in seen else (),
        )
        for index, node in enumerate(spec.nodes)
    }


def running(spec: ClusterSpec, name: str, **changes: object) -> SeenContainer:
    """The container that this spec would have made."""
    here = places(spec)
    made = container_for(spec, spec.node(name), here[name], here[spec.head].address)
    seen = SeenContainer(
        f"id-{name}", made.name, made.image, "sha", made.labels, "running", "then", None
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def decided(found: LaunchPlan) -> list[tuple[str, str, str]]:
    return [(node.expected.name, node.action, node.reason) for node in found.nodes]


def both(spec: ClusterSpec = TWO) -> dict[str, SeenContainer]:
    return {name: running(spec, name) for name in ("gpu01", "gpu02")}


def test_empty_hosts_get_containers() -> None:
    assert decided(plan(TWO, places(), {})) == [
        ("gpu01", "create", "no container yet"),
        ("gpu02", "create", "no container yet"),
    ]


def test_what_runs_as_asked_for_is_kept() -> None:
    found = plan(TWO, places(**both()), {})
    assert decided(found) == [
        ("gpu01", "keep", "runs as asked for"),
        ("gpu02", "keep", "runs as asked for"),
    ]
    assert found.changes == ()


def test_an_upgrade_of_clusterctl_alone_changes_nothing() -> None:
    seen = both()
    old = {
        name: replace(one, labels={**one.labels, LABEL_VERSION: "0.0.1"})
        for name, one in seen.items()
    }
    assert plan(TWO, places(**old), {}).changes == ()


@pytest.mark.parametrize(
    ("changes", "action", "reason"),
    [
        ({"state": "exited", "exit_code": 137}, "start", "stopped with exit code 137"),
        ({"state": "created"}, "replace", "container is created"),
        ({"state": "restarting", "exit_code": 1}, "replace", "container is restarting"),
        ({"image": "other:2"}, "replace", "image was other:2"),
    ],
)
def test_a_worker_that_is_not_right(changes: dict[str, object], action: str, reason: str) -> None:
    seen = {"gpu01": running(TWO, "gpu01"), "gpu02": running(TWO, "gpu02", **changes)}
    assert decided(plan(TWO, places(**seen), {})) == [
        ("gpu01", "keep", "runs as asked for"),
        ("gpu02", action, reason),
    ]


def test_a_changed_setting_replaces_that_node_alone() -> None:
    seen = both()
    nodes = (TWO.nodes[0], replace(TWO.nodes[1], env={"NCCL_DEBUG": "INFO"}))
    changed = replace(TWO, nodes=nodes)
    assert decided(plan(changed, places(**seen), {})) == [
        ("gpu01", "keep", "runs as asked for"),
        ("gpu02", "replace", "what was asked for has changed"),
    ]


def test_workers_do_not_outlive_their_head() -> None:
    seen = {**both(), "gpu01": running(TWO, "gpu01", state="exited", exit_code=0)}
    assert decided(plan(TWO, places(**seen), {})) == [
        ("gpu01", "start", "stopped with exit code 0"),
        ("gpu02", "replace", "joins the new head"),
    ]


def test_what_left_the_cluster_is_removed() -> None:
    three = spec_of("gpu01", "gpu02", "gpu03")
    gone = running(three, "gpu03")
    found = plan(TWO, places(**both()), {"gpu03": [gone]})
    assert decided(found)[2:] == [("gpu03", "remove", "left the cluster")]
    assert found.nodes[2].existing_id == "id-gpu03"
    assert found.disturbed == (found.nodes[2],)


def test_a_host_under_a_new_name_loses_its_old_container() -> None:
    old = replace(running(TWO, "gpu02"), labels={LABEL_NODE: "old", LABEL_ROLE: "worker"})
    here = {**places(gpu01=running(TWO, "gpu01"))}
    here["gpu02"] = replace(here["gpu02"], containers=(old,))
    assert decided(plan(TWO, here, {})) == [
        ("gpu01", "keep", "runs as asked for"),
        ("gpu02", "create", "no container yet"),
        ("old", "remove", "left the cluster"),
    ]


def test_an_image_is_pulled_where_it_is_needed_and_absent() -> None:
    here = places(gpu01=running(TWO, "gpu01"))
    absent = {name: replace(one, image_present=False) for name, one in here.items()}
    assert [node.pull for node in plan(TWO, absent, {}).nodes] == [False, True]


def test_a_node_whose_image_is_another_one_by_now_is_made_anew() -> None:
    """The same name, pulled or built again."""
    newer = {name: replace(one, image_id="sha2") for name, one in places(**both()).items()}
    assert [action for _, action, _ in decided(plan(TWO, newer, {}))] == ["replace", "replace"]
    same = {name: replace(one, image_id="sha") for name, one in places(**both()).items()}
    assert plan(TWO, same, {}).changes == ()


def test_profilers_are_let_in_only_when_asked_for() -> None:
    def capabilities(spec: ClusterSpec) -> tuple[str, ...]:
        return container_for(spec, spec.nodes[0], places()["gpu01"], "10.0.0.1").cap_add

    assert capabilities(TWO) == ()
    assert capabilities(replace(TWO, profiling=True)) == ("CAP_SYS_ADMIN",)


def test_the_container_of_a_worker() -> None:
    made = container_for(TWO, TWO.nodes[1], places()["gpu02"], "10.0.0.1")
    assert made.name == "clusterctl-test-gpu02"
    assert made.command[:10] == (
        "python3",
        "/opt/clusterctl/supervisor.py",
        "--wait-for",
        "10.0.0.1:6379",
        "--node",
        "gpu02",
        "--group",
        "10.0.0.1:6385",
        "--",
        "ray",
    )
    assert dict(made.labels) == {
        LABEL_CLUSTER: "test",
        LABEL_NODE: "gpu02",
        LABEL_ROLE: "worker",
        LABEL_SPEC_HASH: made.labels[LABEL_SPEC_HASH],
        LABEL_VERSION: made.labels[LABEL_VERSION],
    }
    assert (made.devices, made.ulimits, made.cap_add, made.gpus) == ((), (), (), None)


def test_the_environment_of_a_node() -> None:
    assert node_environment(TWO, TWO.nodes[1], places()["gpu02"]) == {
        "VLLM_HOST_IP": "10.0.0.2",
        "NCCL_SOCKET_IFNAME": "=eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "TP_SOCKET_IFNAME": "eth0",
        "UCX_NET_DEVICES": "eth0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/opt/clusterctl/secrets/ray_token",
        "HF_HOME": "/root/.cache/huggingface",
        "VLLM_CACHE_ROOT": "/opt/clusterctl/cache/vllm",
        "TORCHINDUCTOR_CACHE_DIR": "/opt/clusterctl/cache/torchinductor",
        "TRITON_CACHE_DIR": "/opt/clusterctl/cache/triton",
    }


def test_what_the_user_sets_wins_and_the_node_wins_over_the_cluster() -> None:
    spec = replace(
        TWO,
        env={"NCCL_SOCKET_IFNAME": "ib0", "A": "cluster"},
        proxies=ProxySpec(https="http://proxy:3128"),
        ray=RaySpec(insecure=True),
    )
    node = NodeSpec("gpu02", "gpu02", env={"A": "node"})
    environment = node_environment(spec, node, places()["gpu02"])
    assert environment["NCCL_SOCKET_IFNAME"] == "ib0"
    assert environment["A"] == "node"
    assert environment["https_proxy"] == environment["HTTPS_PROXY"] == "http://proxy:3128"
    assert environment["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN_PATH" not in environment


def test_mounts() -> None:
    spec = replace(TWO, model_dirs=("/models",), mounts=(MountSpec("/a", "/b"),))
    here = replace(places()["gpu01"], state_dir="/var/lib/clusterctl/test")
    made = container_for(spec, spec.nodes[0], here, "10.0.0.1")
    cache = own_directories(spec, here)[1]
    assert cache.startswith("/var/lib/clusterctl/test/cache/")
    assert made.mounts == (
        MountSpec("/root/.cache/huggingface", "/root/.cache/huggingface"),
        MountSpec(cache, "/opt/clusterctl/cache"),
        MountSpec("/var/lib/clusterctl/test/crashes", "/opt/clusterctl/crashes"),
        MountSpec("/models", "/models", read_only=True),
        MountSpec("/a", "/b"),
    )


def gpus(vendor: str, count: int) -> GpuFacts:
    return GpuFacts(
        tuple(Gpu(i, vendor, "X", f"u{i}", 80000, 0) for i in range(count)), driver="580"
    )


def test_gpus_and_rdma() -> None:
    spec = replace(TWO, devices=DevicesSpec())
    facts = replace(host_facts(), gpu=gpus("nvidia", 8), rdma_devices=("mlx5_0",))
    here = replace(places()["gpu01"], facts=facts)
    made = container_for(spec, spec.nodes[0], here, "10.0.0.1")
    assert made.gpus == "all"
    assert made.devices == ("/dev/infiniband",)
    assert made.cap_add == ("CAP_IPC_LOCK",)
    assert made.ulimits == (Ulimit("memlock", -1, -1), Ulimit("stack", 67108864, 67108864))
    assert "--num-gpus=8" in made.command
    four = replace(spec, devices=DevicesSpec("gpu", 4))
    made = container_for(four, four.nodes[0], here, "10.0.0.1")
    assert (made.gpus, made.labels[LABEL_GPUS]) == ("0,1,2,3", "0,1,2,3")
    these = replace(spec, devices=DevicesSpec("gpu", 2, (5, 7)))
    made = container_for(these, these.nodes[0], here, "10.0.0.1")
    assert (made.gpus, made.labels[LABEL_GPUS]) == ("5,7", "5,7")
    assert "--num-gpus=2" in made.command


def test_amd() -> None:
    spec = replace(TWO, devices=DevicesSpec())
    here = replace(places()["gpu01"], facts=replace(host_facts(), gpu=gpus("amd", 2)))
    made = container_for(spec, spec.nodes[0], here, "10.0.0.1")
    assert (made.gpus, made.devices, made.group_add) == (None, ("/dev/kfd", "/dev/dri"), ("video",))


def test_processes_of_one_machine_have_ports_of_their_own_and_no_mounts() -> None:
    spec = replace(TWO, runtime="process")
    here = places(spec)
    head = container_for(spec, spec.nodes[0], here["gpu01"], "127.0.0.2")
    worker = container_for(spec, spec.nodes[1], here["gpu02"], "127.0.0.2")
    assert "--node-manager-port=6380" in head.command
    assert "--node-manager-port=6444" in worker.command
    assert worker.mounts == ()
    assert "HF_HOME" not in worker.env
    assert own_directories(spec, here["gpu01"]) == ()
    assert head.image == IMAGE
