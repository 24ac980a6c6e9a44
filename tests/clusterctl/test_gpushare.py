"""GPUs for deployments that no Ray keeps apart."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from clusterctl.errors import PreflightFailed
from clusterctl.serving.gpushare import environment, share
from clusterctl.serving.placement import Devices, Executor, Placement
from clusterctl.serving.records import Deployment
from clusterctl.spec import ServeSpec

TWO = Devices({"a": 4, "b": 4}, "a")
SERVE = ServeSpec("/m", "m", tp=4)


def placed(executor: Executor, *nodes: str) -> Placement:
    return Placement("vllm", executor, nodes, "", "")


def running(name: str, executor: str, **gpus: tuple[int, ...]) -> Deployment:
    return Deployment(name, "/m", "vllm", 1, 1, "ready", "", executor=executor, gpus=gpus)


def test_the_first_free_ones_of_every_node() -> None:
    others = [running("x", "mp", a=(0,)), running("y", "inproc", b=(1,))]
    assert share(SERVE, placed("mp", "a", "b"), TWO, others) == {"a": (1, 2), "b": (0, 2)}


def test_nothing_to_share_over_ray_and_on_cpus() -> None:
    assert share(SERVE, placed("ray", "a"), TWO, [running("x", "ray")]) == {}
    assert share(SERVE, placed("mp", "a"), Devices({"a": 4}, "a", kind="cpu"), []) == {}


@pytest.mark.parametrize(
    ("executor", "other"),
    [
        ("ray", running("x", "mp", a=(0,))),
        ("mp", running("x", "ray")),
        ("mp", running("x", "mp")),  # served before this was written down
        ("ray", running("x", "mp")),
    ],
)
def test_who_does_not_know_of_whom(executor: Executor, other: Deployment) -> None:
    with pytest.raises(PreflightFailed, match="x may hold the same GPUs"):
        share(SERVE, placed(executor, "a"), TWO, [other])


def test_too_few_on_one_node() -> None:
    with pytest.raises(PreflightFailed) as caught:
        share(SERVE, placed("mp", "a"), TWO, [running("x", "mp", a=(0, 1))])
    assert (caught.value.host, caught.value.message) == (
        "a",
        "4 GPUs are needed here, and 2 are free: x has the others",
    )


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        ({"a": (1, 3)}, {"CUDA_VISIBLE_DEVICES": "1,3"}),
        ({"a": (0, 1, 2, 3)}, {}),
        ({"b": (0,)}, {}),
        ({}, {}),
    ],
)
def test_a_process_sees_its_share(gpus: Mapping[str, tuple[int, ...]], said: object) -> None:
    assert environment("a", gpus, TWO) == said
