"""vLLM's command lines, whole."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from clusterctl.serving.vllm import GroupNode, argv
from clusterctl.spec import ServeSpec

LLAMA = ServeSpec("meta-llama/Llama-3.1-70B", "llama", tp=8, pp=2)
COMMON = (
    "vllm serve meta-llama/Llama-3.1-70B --served-model-name meta-llama/Llama-3.1-70B "
    "--tensor-parallel-size 8 --pipeline-parallel-size 2 --distributed-executor-backend"
)


def test_over_ray() -> None:
    line = shlex.join(argv(LLAMA, backend="ray", host="10.0.0.1"))
    assert line == f"{COMMON} ray --dtype auto --host 10.0.0.1 --port 8000"


def test_over_several_nodes_without_ray() -> None:
    lines = [
        shlex.join(argv(LLAMA, backend="mp", host="0.0.0.0", node=GroupNode(2, rank, "10.0.0.1")))
        for rank in (0, 1)
    ]
    group = "--nnodes 2 --node-rank {} --master-addr 10.0.0.1 --master-port 29501"
    first = f"{COMMON} mp --dtype auto --host 0.0.0.0 --port 8000 {group}"
    assert lines == [first.format(0), f"{first.format(1)} --headless"]


def test_what_was_asked_for_and_the_users_own_flags_last() -> None:
    asked = replace(
        LLAMA,
        tp=1,
        pp=1,
        dtype="bfloat16",
        max_model_len=4096,
        served_model_name="llama",
        port=9000,
        extra=("--max-num-seqs", "8"),
    )
    assert shlex.join(argv(asked, backend="uni", host="::1")) == (
        "vllm serve meta-llama/Llama-3.1-70B --served-model-name llama --tensor-parallel-size 1 "
        "--pipeline-parallel-size 1 --distributed-executor-backend uni --dtype bfloat16 "
        "--max-model-len 4096 --host ::1 --port 9000 --max-num-seqs 8"
    )


def test_a_group_is_never_over_ray() -> None:
    with pytest.raises(AssertionError, match="nnodes"):
        argv(LLAMA, backend="ray", host="::1", node=GroupNode(2, 0, "10.0.0.1"))
