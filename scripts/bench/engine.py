#!/usr/bin/env python3
"""How fast the engine is, beside what the machine allows.

Random weights of a published model's shape, random prompts: speed does not depend on either. W1 is
nano-vllm's bench.py (seed 0, 256 requests of 100 to 1024 tokens in and out, temperature 0.6), so
that the figure can be held against published ones. The limit printed beside each figure counts
weights and KV bytes over the copy bandwidth and operations over the matrix rate, both measured in
the same run.

    scripts/bench/engine.py --shape 0.6b w1 batch1 prefill prefill16
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from peers import PEERS

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.request import Request
from engine.sampling_params import SamplingParams

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "dtype": "bfloat16",
    "eos_token_id": 151645,
}
SHAPES = {
    "0.6b": {
        **QWEN3,
        "num_hidden_layers": 28,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
        "tie_word_embeddings": True,
    },
    "8b": {
        **QWEN3,
        "num_hidden_layers": 36,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "intermediate_size": 12288,
        "tie_word_embeddings": False,
    },
    "tiny": {
        **QWEN3,
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 512,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True)
class Machine:
    """What was measured: bytes a second (read and written) and operations a second of `dtype`."""

    name: str
    bandwidth: float
    operations: float
    dtype: torch.dtype


@dataclass(frozen=True)
class Job:
    prompt: int
    answer: int


@dataclass(frozen=True)
class Workload:
    jobs: Sequence[Job]
    temperature: float
    counts: str  # "output" or "prompt": which tokens a second are told
    shared: int = 0  # tokens that all prompts begin with, before their own


def workloads() -> dict[str, Workload]:
    return {
        "w1": Workload(w1(), 0.6, "output"),
        "batch1": Workload([Job(128, 256)], 0.6, "output"),
        "prefill": Workload([Job(3968, 1)], 0.0, "prompt"),
        "prefill16": Workload([Job(3968, 1)] * 16, 0.0, "prompt"),
        "batch32": Workload([Job(64, 64)] * 32, 0.0, "output"),
        "one": Workload([Job(64, 64)], 0.0, "output"),
        "shared": Workload([Job(64, 64)] * 32, 0.0, "output", shared=512),
    }


def w1() -> list[Job]:
    """The lengths that nano-vllm's bench.py draws: it draws each prompt's ids between them."""
    dice = random.Random(0)
    prompts = []
    for _ in range(256):
        length = dice.randint(100, 1024)
        for _ in range(length):
            dice.randint(0, 10000)
        prompts.append(length)
    return [Job(length, dice.randint(100, 1024)) for length in prompts]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=["w1", "batch1"], choices=workloads())
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--model", help="a checkpoint instead of random weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=2, help="timed runs; the best is told")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, default=[], help="measured after ours, with --model"
    )
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--quantization", choices=["int8"])
    parser.add_argument("--record", type=Path, help="JSON that the figures are kept in, for plots")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(SHAPES[arguments.shape]))
        run(arguments, arguments.model or scratch)
    return 0


def run(arguments: argparse.Namespace, model: str) -> None:
    cuda = arguments.device != "cpu" and torch.cuda.is_available()
    dtype = torch.float32 if arguments.dtype == "float32" else torch.bfloat16
    machine = measure(torch.device("cuda" if cuda else "cpu"), dtype)
    print(
        f"{machine.name}, torch {torch.__version__}: copy {machine.bandwidth / 1e9:,.0f} GB/s, "
        f"matrix product {machine.operations / 1e12:,.1f} TFLOP/s"
    )
    began = time.monotonic()
    core = EngineCore(
        EngineConfig(
            model=model,
            dtype=arguments.dtype,
            device=arguments.device,
            load_format="auto" if arguments.model else "dummy",
            tensor_parallel_size=arguments.tp,
            pipeline_parallel_size=arguments.pp,
            max_model_len=4096 if cuda else 1024,
            max_num_seqs=256 if cuda else 32,
            max_num_batched_tokens=16384 if cuda else 2048,
            block_size=arguments.block_size,
            quantization=arguments.quantization,
            enforce_eager=arguments.enforce_eager,
        )
    )
    print(f"started in {time.monotonic() - began:.1f} s, {core.load().kv_blocks:,} KV blocks")
    figures = {}
    try:
        for name in arguments.workloads:
            workload = workloads()[name]
            play(core, workload, f"{name}-warm")  # kernels are compiled here
            seconds = min(play(core, workload, f"{name}-{n}") for n in range(arguments.repeat))
            figures[name] = report(core, arguments, name, workload, seconds, machine)
    finally:
        core.shutdown()
    for name, figure in figures.items():
        for peer in arguments.peers:
            figure[peer] = against(peer, arguments, name, workloads()[name], figure["limit"])
    if arguments.record:
        record(arguments, machine, figures)


def record(
    arguments: argparse.Namespace, machine: Machine, figures: dict[str, dict[str, float]]
) -> None:
    """Beside the figures of other machines, models and dtypes that the file holds."""
    kept = json.loads(arguments.record.read_text()) if arguments.record.exists() else {}
    model = Path(arguments.model).name if arguments.model else arguments.shape
    for name, figure in figures.items():
        dtype = str(machine.dtype).removeprefix("torch.")
        kept[f"{machine.name} {model} {dtype} {name}"] = {k: round(v, 1) for k, v in figure.items()}
    arguments.record.write_text(json.dumps(kept, indent=1) + "\n")


def against(
    peer: str, arguments: argparse.Namespace, name: str, workload: Workload, limit: float
) -> float:
    """A peer's tokens a second for the same workload: the best of as many runs, after one that
    warms up."""
    runs = [prompts_of(workload, f"{name}-{n}", 10000) for n in range(arguments.repeat + 1)]
    if any(job != workload.jobs[0] for job in workload.jobs):
        sys.exit(f"{name}: peers are asked for prompts and answers of one length")
    batches = [
        [(prompt, job.answer) for prompt, job in zip(run, workload.jobs, strict=True)]
        for run in runs
    ]
    dtype = "bfloat16" if arguments.dtype == "auto" else arguments.dtype
    seconds = min(PEERS[peer](arguments.model, dtype, batches)[1:])
    reached = sum(job.answer for job in workload.jobs) / seconds
    print(
        f"{peer} {name} {dtype}: {reached:,.0f} output tok/s in {seconds:.3f} s "
        f"({reached / limit:.0%} of the limit)",
        flush=True,
    )
    return reached


def play(core: EngineCore, workload: Workload, label: str) -> float:
    """Seconds for all of it, every request there at once. Each run's prompts are its own: nothing
    is found in the prefix cache."""
    prompts = prompts_of(workload, label, min(core.shape.vocab_size, 10000))
    for number, (job, prompt) in enumerate(zip(workload.jobs, prompts, strict=True)):
        sampling = SamplingParams(
            temperature=workload.temperature, max_tokens=job.answer, ignore_eos=True
        )
        core.add(Request(f"{label}-{number}", tuple(prompt), sampling))
    began = time.perf_counter()
    produced = 0
    while core.has_work:
        produced += len(core.step())
    assert produced == sum(job.answer for job in workload.jobs)
    return time.perf_counter() - began


def prompts_of(workload: Workload, label: str, vocab: int) -> list[list[int]]:
    """The same beginning for all where the workload says so."""
    dice = random.Random(label)
    shared = dice.choices(range(vocab), k=workload.shared)
    return [[*shared, *dice.choices(range(vocab), k=job.prompt)] for job in workload.jobs]


def report(
    core: EngineCore,
    arguments: argparse.Namespace,
    name: str,
    workload: Workload,
    seconds: float,
    machine: Machine,
) -> dict[str, float]:
    prompt = workload.counts == "prompt"
    tokens = sum(job.prompt if prompt else job.answer for job in workload.jobs)
    least = limit(core, workload, machine) / (arguments.tp * arguments.pp)
    print(
        f"{arguments.model or arguments.shape} {name} tp={arguments.tp} pp={arguments.pp}: "
        f"{tokens / seconds:,.0f} {workload.counts} tok/s in {seconds:.3f} s; limit "
        f"{tokens / least:,.0f} ({least / seconds:.0%} of it)",
        flush=True,
    )
    return {"ours": tokens / seconds, "limit": tokens / least}


def limit(core: EngineCore, workload: Workload, machine: Machine) -> float:
    """Seconds that the workload needs at least: every prompt by operations, every decode step by
    the bytes of weights and KV, or by operations where these are more."""
    shape = core.shape
    body = shape.num_layers * shape.layer_parameters
    parameters = body + shape.embedding_parameters
    weights = machine.dtype.itemsize * parameters
    kv = shape.kv_bytes_per_token(dtype=str(machine.dtype).removeprefix("torch."))
    pairs = 2 * shape.num_layers * shape.num_heads * shape.head_dim
    prefill = sum(2 * body * job.prompt + pairs * job.prompt**2 for job in workload.jobs)
    seconds = prefill / machine.operations
    for batch, resident in decode_steps(workload.jobs):
        moved = (weights + resident * kv) / machine.bandwidth
        seconds += max(moved, (2 * batch * parameters + 2 * pairs * resident) / machine.operations)
    return seconds


def decode_steps(jobs: Sequence[Job]) -> Iterator[tuple[int, int]]:
    """Requests and resident tokens of each step, all requests decoding together."""
    for step in range(1, max(job.answer for job in jobs)):
        alive = [job for job in jobs if job.answer > step]
        yield len(alive), sum(job.prompt + step for job in alive)


def measure(device: torch.device, dtype: torch.dtype) -> Machine:
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    size = 1 << (30 if device.type == "cuda" else 27)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * size / best_seconds(lambda: target.copy_(source), device)
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype).contiguous() for _ in range(2))
    operations = 2 * side**3 / best_seconds(lambda: left @ right, device)
    return Machine(name, bandwidth, operations, dtype)


def best_seconds(call: object, device: torch.device) -> float:
    assert callable(call)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    sys.exit(main())
