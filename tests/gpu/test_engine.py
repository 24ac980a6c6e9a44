"""The engine on one NVIDIA GPU: transformers' tokens, and no more memory than its share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import LLM, SamplingParams
from tests.engine.conftest import load_script

pytestmark = pytest.mark.gpu

PROMPTS = [list(range(5, 5 + length)) for length in (3, 17, 40, 1)]
TOKENS = 40


def make(directory: Path, **sizes: Any) -> Path:
    made: Path = load_script("tiny_llama").make(directory, **sizes)
    return made


def transformers_greedy(directory: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().cuda()
    return [
        model.generate(
            torch.tensor([prompt], device="cuda"),
            attention_mask=torch.ones(1, len(prompt), device="cuda"),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]


@pytest.mark.parametrize(
    ("tp", "pp", "executor"), [(1, 1, "inproc"), (2, 2, "inproc"), (1, 1, "mp")]
)
def test_tokens_are_transformers_own(tmp_path: Path, tp: int, pp: int, executor: str) -> None:
    model = make(tmp_path)
    with LLM(
        str(model),
        dtype="float32",
        device="cuda",
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        distributed_executor_backend=executor,
        kv_cache_memory_bytes=1 << 26,
    ) as llm:
        sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
        outputs = llm.generate(PROMPTS, sampling)
    assert [list(o.outputs[0].token_ids) for o in outputs] == transformers_greedy(model)


def test_memory_stays_within_the_share_under_the_largest_load(tmp_path: Path) -> None:
    """A model of a billion parameters, every seat taken by a prompt of full length."""
    model = make(
        tmp_path,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=8192,
        vocab_size=128256,
        max_position_embeddings=4096,
        initializer_range=0.02,
    )
    with LLM(str(model), dtype="bfloat16", device="cuda", gpu_memory_utilization=0.5) as llm:
        loaded = used_share()
        sampling = SamplingParams(temperature=0.7, top_p=0.9, seed=1, max_tokens=8, ignore_eos=True)
        llm.generate([[7] * 4000] * 64, sampling)
        assert 0.45 < loaded <= 0.5
        assert used_share() < 0.52  # sampling sorts all logits, which was not rehearsed


def used_share() -> float:
    free, total = torch.cuda.mem_get_info()
    return 1 - free / total
