"""vLLM's command lines, whole."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from clusterctl.serving.vllm import (
    Abilities,
    GroupNode,
    ReplicasNode,
    argv,
    parse_abilities,
    unknown_sizes,
)
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


def test_sizes_beyond_tp_and_pp_only_where_they_are_asked_for() -> None:
    asked = replace(LLAMA, tp=8, pp=1, dp=2, ep=True, dcp=2)
    line = shlex.join(argv(asked, backend="ray", host="::1"))
    assert (
        "--pipeline-parallel-size 1 --data-parallel-size 2 --data-parallel-backend ray "
        "--enable-expert-parallel --decode-context-parallel-size 2 "
        "--distributed-executor-backend ray"
    ) in line
    assert "--data-parallel-backend" not in argv(asked, backend="mp", host="::1")


def test_replicas_over_several_nodes() -> None:
    asked = replace(LLAMA, tp=8, pp=1, dp=4)
    lines = [
        shlex.join(argv(asked, backend="mp", host="::1", node=ReplicasNode(first, 2, "10.0.0.1")))
        for first in (0, 2)
    ]
    flags = (
        "--data-parallel-size-local 2 --data-parallel-address 10.0.0.1 "
        "--data-parallel-rpc-port 29550"
    )
    assert lines[0].endswith(f"--port 8000 {flags}")
    assert lines[1].endswith(f"--port 8000 {flags} --data-parallel-start-rank 2 --headless")
    assert all("--data-parallel-size 4" in line for line in lines)


def said(**values: object) -> str:
    return "noise\n" + json.dumps({"error": "", "help": "", "ray_resource": "GPU", **values})


def test_flags_are_read_out_of_the_help() -> None:
    text = """
  --nnodes NNODES, -n NNODES
                        num of nodes for multi-node (default: 1)
  --enable-expert-parallel, --no-enable-expert-parallel, -ep
  --hf-overrides HF_OVERRIDES  as JSON: --hf-overrides.text_config
"""
    found = parse_abilities(said(help=text))
    assert found == Abilities(
        frozenset(
            {"--nnodes", "--enable-expert-parallel", "--no-enable-expert-parallel"}
            | {"--hf-overrides"}
        ),
        "GPU",
    )
    asked = replace(LLAMA, ep=True, dcp=2)
    assert unknown_sizes(asked, found) == ("--decode-context-parallel-size",)


def test_a_vllm_that_does_not_start_says_why() -> None:
    error = "ImportError: libcudart.so.13: cannot open shared object file\n"
    assert parse_abilities(said(help=None, error=error)) == error.strip()
    assert parse_abilities(said(ray_resource=None)) == "it printed nothing"


def test_a_group_is_never_over_ray() -> None:
    with pytest.raises(AssertionError, match="nnodes"):
        argv(LLAMA, backend="ray", host="::1", node=GroupNode(2, 0, "10.0.0.1"))
