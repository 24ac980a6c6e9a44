"""Clusters of unlike GPUs, and what the hosts themselves say of theirs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clusterctl.errors import ConfigError
from clusterctl.facts.gather import parse_facts
from clusterctl.facts.types import Gpu as SeenGpu
from clusterctl.facts.types import GpuFacts, HostFacts, NvidiaFacts, NvLinks, RdmaPort
from clusterctl.planner.explain import sentences
from clusterctl.planner.gpus import find_gpu, parse_hardware
from clusterctl.planner.live import cpu_hardware, hardware_of, rdma_between
from clusterctl.planner.memory import Settings, Split
from clusterctl.planner.published import Model, find_model
from clusterctl.planner.strategy import Asked, make_plans
from clusterctl.planner.tensors import checkpoint_bytes
from clusterctl.planner.uneven import by_bandwidth, by_memory
from engine.shapes import ModelShape

GIB = 1 << 30
H200 = Path(__file__).parents[1] / "data/facts/h200.txt"

# 40 layers of 2 x 4096 x 128 x (32 + 8) + 3 x 4096 x 11008 + 2 x 4096 weights, and next to no
# vocabulary: 177,217,536 x 2 bytes a layer. A token takes 2 x 8 x 128 x 2 = 4096 bytes in each.
SHAPE = ModelShape(
    architecture="LlamaForCausalLM",
    num_layers=40,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=11008,
    vocab_size=32,
    max_position=8192,
    dtype="bfloat16",
)
LAYER = 2 * (2 * 4096 * 128 * 40 + 3 * 4096 * 11008 + 2 * 4096)
PAIR = (find_gpu("H100-80G"), find_gpu("A100-40G"))
SPLIT = Split(1, 2)


def test_a_list_of_gpus_is_a_cluster_of_unlike_nodes() -> None:
    hardware = parse_hardware("1x8xH100-80G, 2x4xA100-40G")
    assert (str(hardware), hardware.total, hardware.nodes) == (
        "1x8xH100-80G,2x4xA100-40G",
        16,
        3,
    )
    assert hardware.gpu.name == "A100-40G"


def test_a_list_with_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="X100"):
        parse_hardware("1x8xH100-80G,1x8xX100")


def test_layers_by_bandwidth() -> None:
    """28/3350 is just below 13/1555, and above 12/1555."""
    cut = by_bandwidth(SHAPE, SPLIT, PAIR, Settings(), tokens=0, scale=1.0)
    assert cut == (28, 12)


def test_layers_by_bandwidth_leave_room_for_the_tokens() -> None:
    """28 layers would leave the H100 556,000; 27 leave it 580,000, and 13 the other 588,000."""
    assert by_bandwidth(SHAPE, SPLIT, PAIR, Settings(), tokens=570_000, scale=1.0) == (27, 13)


def test_layers_by_memory_give_both_about_as_many_tokens() -> None:
    first, second = by_memory(SHAPE, SPLIT, PAIR, Settings(), scale=1.0)
    # 71.2 - 1.8 against 35.45 - 1.8 GiB before the weights.
    assert first / second == pytest.approx(69.4 / 33.65, rel=0.1)


def test_tokens_are_the_minimum_over_unlike_ranks() -> None:
    model = Model("m", SHAPE, checkpoint_bytes(SHAPE), "shapes", "test")
    found = make_plans(
        model, parse_hardware("1x1xH100-80G,1x1xA100-40G"), Settings(), Asked(tp=1, pp=2)
    )
    memory = found.plans[0].memory
    assert memory is not None
    assert [len(stage.layers) for stage in memory.stages] == [28, 12]
    each = []
    for stage, usable, layers in zip(memory.stages, (79.11, 39.39), (28, 12), strict=True):
        left = int(usable * GIB * 0.9) - layers * LAYER - int(1.8 * GIB) - stage.activations
        each.append(left // (16 * 4096 * layers) * 16)
    assert memory.kv_cache_tokens == pytest.approx(min(each), rel=0.001)
    assert each[0] < each[1]
    said = " ".join(sentences(found))
    assert "what was asked for" in said


def test_a_slower_node_that_is_not_needed_is_left_out() -> None:
    found = make_plans(
        find_model("meta-llama/Llama-3.1-405B"),
        parse_hardware("2x8xH100,1x4xL40S"),
        Settings(),
        Asked(),
    )
    plan = found.plans[found.best or 0]
    assert (found.best, str(plan.split)) == (0, "tp=8 pp=2")
    assert plan.memory is not None
    assert {stage.gpu.name for stage in plan.memory.stages} == {"H100-80G"}


def test_a_pipeline_over_unlike_nodes_says_how_its_layers_are_cut() -> None:
    found = make_plans(
        find_model("meta-llama/Llama-3.1-405B"),
        parse_hardware("1x8xH100,1x8xA100"),
        Settings(),
        Asked(),
    )
    plan = found.plans[0]
    assert (found.best, str(plan.split)) == (0, "tp=8 pp=2")
    assert plan.memory is not None
    first, second = (len(stage.layers) for stage in plan.memory.stages)
    assert first > second  # the faster GPU holds more
    assert f"--pipeline-partition {first},{second}" in sentences(found)[1]


def test_tensor_parallelism_does_not_join_unlike_nodes() -> None:
    found = make_plans(
        find_model("meta-llama/Llama-3.1-70B"),
        parse_hardware("1x8xH100,1x8xA100"),
        Settings(),
        Asked(tp=16, pp=1),
    )
    assert found.best is None
    assert "tp=16 does not fill whole nodes of equal GPUs" in found.plans[0].reasons[0]


# --- what the hosts say --------------------------------------------------------------------------


def host(name: str, gpu: str, count: int, mib: int, *, rdma: str | None = "ACTIVE") -> HostFacts:
    """A host like the recorded one, with other GPUs in it."""
    recorded = parse_facts(name, H200.read_text(), sent=0.0, received=0.0)
    gpus = tuple(SeenGpu(i, "nvidia", gpu, f"GPU-{i}", mib, 0) for i in range(count))
    links = tuple(NvLinks(i, 18, 0) for i in range(count)) if "H100 80GB HBM3" in gpu else ()
    ports = () if rdma is None else (RdmaPort("mlx5_0", 1, rdma, "InfiniBand", 400.0),)
    return replace(
        recorded, gpu=GpuFacts(gpus, "570"), nvidia=NvidiaFacts(links=links), rdma_ports=ports
    )


H100S = ("NVIDIA H100 80GB HBM3", 8, 81559)


def test_the_recorded_host() -> None:
    facts = {"a": parse_facts("a", H200.read_text(), sent=0.0, received=0.0)}
    assert str(hardware_of(facts)) == "1x1xH200"


def test_two_hosts_alike_are_one_group_and_are_planned_as_one() -> None:
    facts = {name: host(name, *H100S) for name in ("a", "b")}
    hardware = hardware_of(facts)
    assert hardware is not None
    assert (str(hardware), hardware.linked) == ("2x8xH100-80G", True)
    found = make_plans(
        find_model("meta-llama/Llama-3.1-405B"),
        hardware,
        Settings(),
        Asked(rdma=rdma_between(facts)),
    )
    assert str(found.plans[0].split) == "tp=8 pp=2"


def test_unlike_hosts_keep_their_order_and_lend_what_they_may() -> None:
    facts = {"a": host("a", *H100S), "b": host("b", "NVIDIA A100-SXM4-80GB", 8, 81920)}
    assert str(hardware_of(facts, {"a": 8, "b": 4})) == "1x8xH100-80G,1x4xA100-80G"


def test_gpus_without_links_are_planned_as_such() -> None:
    hardware = hardware_of({"a": host("a", "NVIDIA A100 80GB PCIe", 2, 81920)})
    assert hardware is not None
    assert not hardware.linked


def test_a_gpu_that_is_not_known_is_no_hardware() -> None:
    assert hardware_of({"a": host("a", "NVIDIA Z9000", 8, 81920)}) is None
    assert hardware_of({"a": replace(host("a", *H100S), gpu=GpuFacts())}) is None


@pytest.mark.parametrize(("state", "legal"), [("ACTIVE", True), ("DOWN", False), (None, False)])
def test_tensor_parallelism_over_nodes_asks_for_rdma(state: str | None, legal: bool) -> None:
    facts = {name: host(name, *H100S, rdma=state) for name in ("a", "b")}
    hardware = hardware_of(facts)
    assert hardware is not None
    found = make_plans(
        find_model("meta-llama/Llama-3.1-405B"),
        hardware,
        Settings(),
        Asked(tp=16, pp=1, rdma=rdma_between(facts)),
    )
    assert (found.best is not None) is legal
    assert legal or "which have no RDMA between them" in found.plans[0].reasons[0]


def test_rdma_that_could_not_be_asked_is_unknown() -> None:
    facts = {"a": replace(host("a", *H100S), rdma_ports=None)}
    assert rdma_between(facts) is None


def test_cpu_slots_share_their_hosts_memory() -> None:
    hardware = cpu_hardware([32 * GIB, 16 * GIB], [2, 2])
    assert (str(hardware), hardware.gpu.memory_gib) == ("2x2xCPU slot", 8.0)
