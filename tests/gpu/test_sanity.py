"""The collective check on the NVIDIA GPUs of this machine: NCCL's sums, its transport, and figures
that are near the datasheet and not beyond it."""

from __future__ import annotations

import contextlib
import io
import socket

import pytest
import torch

from engine.sanity import LAST_STEP, Verdict, main

pytestmark = pytest.mark.gpu

STEPS = ["start", "rendezvous", "gloo all_reduce", "matmul", "device speed"]
STEPS += ["NCCL all_reduce", LAST_STEP]

# NVIDIA H100 SXM datasheet: 989 dense bf16 TFLOP/s, 3350 GB/s. H200: the same, 4800 GB/s.
DATASHEET = {"NVIDIA H100 80GB HBM3": (989, 3350), "NVIDIA H200": (989, 4800)}


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return _run([f"--nproc-per-node={torch.cuda.device_count()}", f"--master-port={port}"])


def _run(argv: list[str]) -> list[Verdict]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([*argv, "--backend=nccl", "--speed", "--timeout=60", "--json"]) == 0
    return [Verdict.from_json(line) for line in said.getvalue().splitlines()]


def test_every_rank_passes_every_step(verdicts: list[Verdict]) -> None:
    for rank in range(torch.cuda.device_count()):
        assert [(v.step, v.ok) for v in verdicts if v.rank == rank] == [(s, True) for s in STEPS]


def test_figures_are_near_the_datasheet(verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        if verdict.tflops is None or verdict.device not in DATASHEET:
            continue
        tflops, memory = DATASHEET[verdict.device]
        assert 0.5 * tflops < verdict.tflops < tflops
        assert verdict.memory_gb_s is not None
        assert 0.7 * memory < verdict.memory_gb_s < memory


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_of_one_host_speak_without_a_network(verdicts: list[Verdict]) -> None:
    last = [verdict for verdict in verdicts if verdict.step == LAST_STEP]
    for verdict in last:
        assert {via.partition("/")[0] for _, _, via in verdict.links} <= {"P2P", "SHM"}
        assert verdict.links
        assert verdict.busbw_gb_s is not None
        assert verdict.busbw_gb_s > 1
