"""Other engines' time for the same batches, on the same machine and in the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]

Batch = Sequence[tuple[Sequence[int], int]]  # prompt, and how many tokens its answer has


def vllm(model: str, dtype: str, runs: Sequence[Batch]) -> list[float]:
    """Seconds of each run. Compiled, on two threads, prefix cache off: every prompt is new."""
    made = [sys.executable, str(SCRIPTS / "vllm-cpu")]
    command = subprocess.run(made, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    options = {
        "model": model,
        "dtype": dtype,
        "max_model_len": 1024,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 2048,
        "enable_prefix_caching": False,
    }
    settings = {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    peer = [str(Path(command).with_name("python")), str(Path(__file__).with_name("vllm_peer.py"))]
    shown = " ".join([*(f"{k}={v}" for k, v in settings.items()), *peer])
    print(f"vllm-cpu: {shown} <<< {json.dumps(options)}", flush=True)
    done = subprocess.run(
        peer,
        input=json.dumps({"options": options, "runs": runs, "temperature": 0.0}),
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
    )
    if done.returncode:
        sys.exit(f"vllm-cpu failed:\n{done.stderr[-2000:]}")
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def transformers(model: str, dtype: str, runs: Sequence[Batch]) -> list[float]:
    """`generate` on the whole batch at once: all its prompts and answers must be equally long."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    loaded.generation_config.eos_token_id = None  # as ignore_eos
    seconds = []
    for run in runs:
        (answer,) = {answer for _, answer in run}
        prompts = torch.tensor([prompt for prompt, _ in run])
        began = time.perf_counter()
        made = loaded.generate(
            prompts, max_new_tokens=answer, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        seconds.append(time.perf_counter() - began)
        assert made.shape[1] == prompts.shape[1] + answer
    return seconds


def generate_batch(model: str, dtype: str, runs: Sequence[Batch]) -> list[float]:
    """transformers' continuous batching, with a cache of pages that it need not size itself."""
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    pages = ContinuousBatchingConfig(num_blocks=128, max_batch_tokens=2048)  # 128 of 256 tokens
    seconds = []
    for run in runs:
        (answer,) = {answer for _, answer in run}
        greedy = GenerationConfig(
            max_new_tokens=answer, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        prompts = [list(prompt) for prompt, _ in run]
        began = time.perf_counter()
        made = loaded.generate_batch(prompts, greedy, continuous_batching_config=pages)
        seconds.append(time.perf_counter() - began)
        assert [len(one.generated_tokens) for one in made.values()] == [answer] * len(run)
    return seconds


PEERS = {"vllm": vllm, "transformers": transformers, "generate_batch": generate_batch}
