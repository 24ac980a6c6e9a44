"""Every check: one sample that triggers it, a healthy cluster that does not, and unknown where the
fact it needs could not be learnt."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from clusterctl.containers import LABEL_CLUSTER, LABEL_GPUS, container_name
from clusterctl.doctor.catalogue import CATALOGUE
from clusterctl.doctor.check import Check, Finding, run_checks
from clusterctl.doctor.checks import (
    ASKED_CHECKS,
    CLUSTER_CHECKS,
    DEEP_CHECKS,
    HOST_CHECKS,
    Choice,
)
from clusterctl.doctor.subject import Cluster, Host, Plan
from clusterctl.errors import ConfigError
from clusterctl.facts.types import (
    Address,
    Disk,
    DockerContainer,
    DockerFacts,
    Firewall,
    Gid,
    Gpu,
    GpuFacts,
    GpuHealth,
    GpuPath,
    GpuProcess,
    HostFacts,
    Interface,
    Listener,
    ModelFacts,
    ModelFile,
    NvidiaFacts,
    NvLinks,
    RdmaPort,
)
from clusterctl.launch import node_ray
from clusterctl.spec import DevicesSpec, RaySpec
from tests.clusterctl.hosts import host_facts, spec_of

ALL: dict[str, Check[Any]] = {
    **{one.id: one for one in HOST_CHECKS},
    **{one.id: one for one in CLUSTER_CHECKS},
}  # the others have tests of their own: test_pairs, test_collectives, test_images
SPEC = spec_of("gpu01", "gpu02", devices=DevicesSpec())
DRIVER = "580.159.04"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
}
MODEL = ModelFacts(
    "/models/m",
    True,
    (ModelFile("config.json", 600), ModelFile("model.safetensors", 900, 900)),
    (("config.json", "abc"),),
    config=json.dumps(CONFIG),
)


def healthy(name: str, address: str) -> HostFacts:
    """Two GPUs, NVLink, a RoCE port."""
    facts = host_facts(name, address)
    gpus = tuple(Gpu(i, "nvidia", "NVIDIA H200", f"GPU-{i}", 143771, 1) for i in range(2))
    health = tuple(
        GpuHealth(
            i, f"GPU-{i}", f"0000:0{i}:00.0", True, False, 0, False, False, 16, 16, (), "Completed"
        )
        for i in range(2)
    )
    gid = Gid(3, f"0000:0000:0000:0000:0000:ffff:0a00:00{address[-2:]}", "RoCE v2", "eth1")
    fabric = Interface(
        "eth1",
        True,
        (Address(f"10.0.1.{address[-2:]}", 24),),
        4200,
        400000,
        f"02:01:00:00:00:{address[-2:]}",
        "mlx5_0",
    )
    return replace(
        facts,
        host=replace(facts.host, acs_bridges=0),
        interfaces=(*facts.interfaces, fabric),
        gpu=GpuFacts(gpus, DRIVER, "13.0"),
        nvidia=NvidiaFacts(
            health=health,
            links=(NvLinks(0, 18, 0), NvLinks(1, 18, 0)),
            paths=(GpuPath("GPU0", "GPU1", "NV18"),),
            services=(("nvidia-fabricmanager", "active"),),
            switches=4,
            driver_on_disk=DRIVER,
            open_module=True,
        ),
        docker=replace(
            facts.docker, runtimes=("nvidia", "runc"), image_id="sha256:aaaaaaaaaaaaaaa"
        ),
        rdma_devices=("mlx5_0",),
        rdma_ports=(RdmaPort("mlx5_0", 1, "ACTIVE", "Ethernet", 400.0, 4096, (gid,)),),
        model=MODEL,
    )


ONE = Host(SPEC, SPEC.node("gpu01"), healthy("gpu01", "10.0.0.11"))
TWO = Host(SPEC, SPEC.node("gpu02"), healthy("gpu02", "10.0.0.12"))
BOTH = Cluster(SPEC, {"gpu01": ONE, "gpu02": TWO})


def facts(**changes: Any) -> Host:
    return replace(ONE, facts=replace(ONE.facts, **changes))


def machine(**changes: Any) -> Host:
    return facts(host=replace(ONE.facts.host, **changes))


def docker(**changes: Any) -> Host:
    return facts(docker=replace(ONE.facts.docker, **changes))


def nvidia(**changes: Any) -> Host:
    return facts(nvidia=replace(ONE.facts.nvidia, **changes))


def unified(cached: int) -> Host:
    """A GB10 with so many of its 120 GiB holding files."""
    spark = GpuFacts((Gpu(0, "nvidia", "NVIDIA GB10", "GPU-0", None, None),), DRIVER, "13.0")
    sizes = {"memory_bytes": 120 << 30, "memory_available_bytes": 110 << 30}
    one = machine(**sizes, memory_free_bytes=(110 - cached) << 30)
    return replace(one, facts=replace(one.facts, gpu=spark))


def gpu(**changes: Any) -> Host:
    known = ONE.facts.nvidia.health or ()
    return nvidia(health=(replace(known[0], **changes), *known[1:]))


def disks(*changed: Disk) -> Host:
    kept = [d for d in ONE.facts.host.disks if d.path not in {c.path for c in changed}]
    return machine(disks=(*changed, *kept))


def port(**changes: Any) -> Host:
    return facts(rdma_ports=tuple(replace(p, **changes) for p in ONE.facts.rdma_ports or ()))


def environment(**env: str) -> Host:
    return replace(ONE, spec=replace(SPEC, env=env))


def second(**changes: Any) -> Cluster:
    return Cluster(SPEC, {"gpu01": ONE, "gpu02": replace(TWO, facts=replace(TWO.facts, **changes))})


def links(**changes: Any) -> Cluster:
    *others, fabric = TWO.facts.interfaces
    return second(interfaces=(*others, replace(fabric, **changes)))


def whole(**changes: Any) -> Cluster:
    return Cluster(replace(SPEC, **changes), BOTH.hosts)


def held() -> Host:
    known = gpu(processes=(GpuProcess(9, "python3", 70000, "ann", "old-vllm"),))
    first, *rest = known.facts.gpu.gpus
    used = replace(known.facts.gpu, gpus=(replace(first, memory_used_mib=70000), *rest))
    return replace(known, facts=replace(known.facts, gpu=used))


def twin() -> Cluster:
    return Cluster(
        SPEC,
        {
            "gpu01": ONE,
            "gpu02": replace(TWO, node=replace(TWO.node, address="gpu01"), facts=ONE.facts),
        },
    )


def amd() -> Host:
    mine = machine(numa_balancing=True)
    gpus = GpuFacts((Gpu(0, "amd", "MI300X", "u", 1, 0),))
    return replace(mine, facts=replace(mine.facts, gpu=gpus))


XID = "[ 9.1] NVRM: Xid (PCI:0000:1b:00): 79, pid=1, GPU has fallen off the bus."
DROP = "-A INPUT -p tcp -m tcp --dport 6379 -j DROP"
LOW = 1 << 30

OTHERS = DockerContainer(
    "a", "clusterctl-b-gpu01", "x", "running", {LABEL_CLUSTER: "b", LABEL_GPUS: "0"}
)

SAMPLES: dict[str, Host | Cluster] = {
    "docker.answers": facts(docker=DockerFacts(error="permission denied")),
    "docker.version": docker(api_version="1.40", version="19.03"),
    "docker.disk": disks(Disk("/var/lib/docker", 10**12, LOW)),
    "docker.stale": docker(containers=(DockerContainer("a", "node-4711", "vllm", "running"),)),
    "docker.name": docker(
        containers=(DockerContainer("a", container_name("test", "gpu01"), "x", "exited"),)
    ),
    "docker.gpu-runtime": docker(runtimes=("runc",)),
    "gpu.driver": facts(gpu=GpuFacts(error="nvidia-smi: Driver/library version mismatch")),
    "gpu.driver-on-disk": nvidia(driver_on_disk="590.1"),
    "gpu.count": facts(gpu=GpuFacts()),
    "gpu.ecc": gpu(uncorrected_errors=2),
    "gpu.remap": gpu(remap_pending=True),
    "gpu.recovery": gpu(recovery="Reset"),
    "gpu.fabric": nvidia(services=(("nvidia-fabricmanager", "failed"),)),
    "gpu.slowed": gpu(slowed=("hardware thermal slowdown",)),
    "gpu.pcie": gpu(pcie_width=8),
    "gpu.mig": gpu(mig=True),
    "gpu.persistence": gpu(persistence=False),
    "gpu.memory-held": held(),
    "gpu.xid": facts(kernel_log=(XID,)),
    "gpu.nvlink": nvidia(links=(NvLinks(0, 17, 1), NvLinks(1, 18, 0))),
    "gpu.paths": nvidia(paths=(GpuPath("GPU0", "GPU1", "SYS"),)),
    "gpu.acs": machine(acs_bridges=12),
    "gpu.other-cluster": docker(containers=(OTHERS,)),
    "gpu.alike": second(gpu=GpuFacts(TWO.facts.gpu.gpus[:1], DRIVER)),
    "gpu.driver-equal": second(gpu=replace(TWO.facts.gpu, driver="570.1")),
    "ray.ports": facts(listeners=(Listener("0.0.0.0", 6379, "gcs_server"),)),
    "ray.dashboard": facts(listeners=(Listener("0.0.0.0", 8265, "python3"),)),
    "ray.port-range": whole(ray=RaySpec(port=10500)),
    "ray.token": whole(ray=RaySpec(insecure=True)),
    "host.clock": machine(clock_offset_s=-90.0),
    "host.shm": disks(Disk("/dev/shm", 64 << 20, 64 << 20)),
    "host.directories": facts(missing_directories=("/models",)),
    "host.disk": disks(Disk("/root/.cache/huggingface", 10**12, LOW)),
    "host.open-files": machine(ulimits=(("nofile", "256"),)),
    "host.ephemeral-ports": machine(ephemeral_ports=(1024, 65535)),
    "host.selinux": machine(selinux="enforcing"),
    "host.preload": machine(preloaded="/usr/local/vgpu/libvgpu.so"),
    "host.oom": facts(kernel_log=("[1.0] Out of memory: Killed process 7 (python3)",)),
    "host.numa-balancing": amd(),
    "host.distinct": twin(),
    "host.architecture": second(host=replace(TWO.facts.host, architecture="aarch64")),
    "image.equal": second(docker=replace(TWO.facts.docker, image_id="sha256:bbbbbbbbbbbbbbb")),
    "net.hostname-loopback": machine(hostname_resolves_to=("127.0.1.1",)),
    "net.same-subnet": facts(
        interfaces=(
            *ONE.facts.interfaces,
            Interface("eth2", True, (Address("10.0.0.99", 24),), 1500, None, "02:02:00:00:00:01"),
        )
    ),
    "net.fabric-address": facts(
        interfaces=tuple(
            replace(i, addresses=()) if i.rdma_device else i for i in ONE.facts.interfaces
        )
    ),
    "net.firewall": facts(firewall=Firewall("ACCEPT", (DROP,))),
    "net.env-interface": environment(NCCL_SOCKET_IFNAME="=ens9"),
    "net.env-public": environment(VLLM_HOST_IP="8.8.8.8"),
    "net.env-leftover": environment(NCCL_IB_DISABLE="1"),
    "net.env-address": whole(env={"VLLM_HOST_IP": "10.0.0.11"}),
    "net.duplicate-address": links(addresses=(Address("10.0.1.11", 24),)),
    "net.mtu-equal": links(mtu=1500),
    "net.speed-equal": links(speed_mbit=100000),
    "rdma.ports": port(state="DOWN"),
    "rdma.gid": port(gids=()),
    "rdma.hca": environment(NCCL_IB_HCA="ibs112"),
    "rdma.gpudirect": nvidia(open_module=False),
    "rdma.alike": second(rdma_devices=(), rdma_ports=()),
    "rdma.mtu-equal": second(
        rdma_ports=tuple(replace(p, mtu=1024) for p in TWO.facts.rdma_ports or ())
    ),
    "model.present": facts(model=ModelFacts("/models/m", False)),
    "model.complete": facts(model=replace(MODEL, files=(ModelFile("a.safetensors", 9, 900),))),
    "model.token": facts(model=ModelFacts("meta-llama/Llama-3.1-8B", False)),
    "model.equal": second(model=replace(MODEL, digests=(("config.json", "abd"),))),
    "gpu.unified-memory": unified(cached=90),
    "model.split": replace(BOTH, plan=Plan(5, 1, "as asked")),
}

# What a sample is expected to predict beside the check's own cause.
CAUSES = {
    "docker.answers": "docker-socket-permission",
    "gpu.driver": "driver-library-mismatch",
    "gpu.count": "ray-gpu-not-detected",
    "gpu.xid": "gpu-fell-off-bus",
    "ray.ports": "port-in-use-stray-ray",
    "host.directories": "model-path-missing",
    "net.env-interface": "nccl-socket-ifname-wrong",
    "model.present": "model-path-missing",
    "model.complete": "safetensors-truncated",
}


def judged(id: str, subject: Host | Cluster) -> list[Finding]:
    return list(run_checks([ALL[id]], [subject]))


@pytest.mark.parametrize("id", sorted(ALL))
def test_the_sample_triggers_and_the_healthy_cluster_does_not(id: str) -> None:
    bad = [one for one in judged(id, SAMPLES[id]) if one.verdict in ("warn", "fail")]
    assert bad
    assert all(one.message and one.cause for one in bad)
    assert bad[0].cause == CAUSES.get(id, ALL[id].cause)
    fine = judged(id, BOTH if ALL[id].scope == "cluster" else ONE)
    assert {one.verdict for one in fine} <= {"ok", "skip"}, fine


def test_there_is_a_sample_for_each_check_and_for_no_other() -> None:
    assert set(SAMPLES) == set(ALL)


@pytest.mark.parametrize(("id", "need"), [(id, n) for id in sorted(ALL) for n in ALL[id].needs])
def test_what_could_not_be_learnt_is_unknown_never_ok(id: str, need: str) -> None:
    base = SAMPLES[id]
    assert isinstance(base, Host)
    blind = replace(base, facts=without(base.facts, need.split(".")))
    assert {one.verdict for one in judged(id, blind)} <= {"unknown", "fail"}


def without(value: Any, path: list[str]) -> Any:
    name, *rest = path
    return replace(value, **{name: without(getattr(value, name), rest) if rest else None})


def test_a_check_says_why_it_matters() -> None:
    for one in ALL.values():
        assert len(one.why) > 40, one.id
        assert one.explained().startswith(f"{one.id}: {one.title}\n")


def test_few_cached_files_in_unified_memory_are_no_trouble() -> None:
    assert [one.verdict for one in judged("gpu.unified-memory", unified(cached=5))] == ["ok"]


def split(tp: int, pp: int, **config: Any) -> list[tuple[str | None, str]]:
    model = replace(MODEL, config=json.dumps(CONFIG | config))
    one = replace(ONE, facts=replace(ONE.facts, model=model))
    seen = Cluster(SPEC, {"gpu01": one}, Plan(tp, pp, "as asked"))
    return [(found.cause, found.verdict) for found in judged("model.split", seen)]


def test_a_split_is_judged_by_the_models_own_sizes() -> None:
    block = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    assert split(8, 2) == [("heads-not-divisible-by-tp", "ok")]
    assert split(3, 1)[0] == ("heads-not-divisible-by-tp", "fail")
    assert split(2, 64) == [("parallel-size-invalid", "fail")]
    assert split(32, 1, **block) == [("quant-block-not-divisible-by-tp", "fail")]
    assert split(8, 1, **block) == [("heads-not-divisible-by-tp", "ok")]
    assert split(8, 1, num_attention_heads=None)[0][1] == "unknown"


def test_values_tell_who_holds_the_memory() -> None:
    [one] = [f for f in judged("gpu.memory-held", held()) if f.verdict == "warn"]
    assert one.message == (
        "GPU 0: 70000 of 143771 MiB are held by python3 (PID 9, ann, container old-vllm)"
    )
    assert one.values == {"gpu": "0", "pids": "9"}


@pytest.mark.parametrize(
    ("choice", "taken"),
    [
        (Choice(), True),
        (Choice(only=("net.*",)), True),
        (Choice(only=("preflight",)), True),
        (Choice(only=("gpu.*",)), False),
        (Choice(skip=("net.hostname-loopback",)), False),
    ],
)
def test_checks_are_chosen_by_id_glob_and_tag(choice: Choice, taken: bool) -> None:
    choice.require_known()
    assert choice.takes("net.hostname-loopback") is taken


def test_a_word_that_fits_no_check_is_refused() -> None:
    with pytest.raises(ConfigError, match="no check is called 'gpu.eec'"):
        Choice(only=("gpu.eec",)).require_known()


def test_every_failure_of_the_catalogue_has_a_check_that_exists_or_a_reason() -> None:
    known = {*ALL, *(one.id for one in (*ASKED_CHECKS, *DEEP_CHECKS))}
    for failure in CATALOGUE:
        assert failure.checks or failure.otherwise, failure.what
        assert set(failure.checks) <= known, failure.what


@pytest.mark.parametrize(("runs", "verdict"), [(True, "skip"), (None, "skip"), (False, "fail")])
def test_ports_of_a_local_cluster_are_its_own_nodes_while_it_runs(
    runs: bool | None, verdict: str
) -> None:
    """Nodes of a local cluster are no containers: Docker cannot tell whose the ports are."""
    spec = replace(SPEC, runtime="process")
    port = node_ray(spec, spec.node("gpu01")).port
    facts = replace(ONE.facts, listeners=(Listener("127.0.0.2", port, "gcs_server"),))
    (found,) = run_checks([ALL["ray.ports"]], [Host(spec, spec.node("gpu01"), facts, runs)])
    assert found.verdict == verdict


@pytest.mark.parametrize("id", ["ray.ports", "gpu.memory-held"])
def test_a_docker_that_does_not_answer_is_not_taken_for_a_node_that_runs(id: str) -> None:
    (found,) = judged(id, facts(docker=DockerFacts(error="no Docker socket")))
    why = "Docker does not say whether its own node runs, which may be what uses them"
    assert (found.verdict, found.message) == ("skip", why)
