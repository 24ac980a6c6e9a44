"""The engine on one NVIDIA GPU: transformers' tokens, the CPU's choices, and no more memory than
its share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine import LLM, SamplingParams
from tests.engine.conftest import load_script
from tests.engine.test_families import FAMILIES
from tests.engine.test_models import TOKENS, transformers_greedy
from tests.gpu.conftest import generate, make_checkpoint

pytestmark = pytest.mark.gpu

CUTS = [(1, 1, "inproc"), (2, 2, "inproc"), (1, 1, "mp"), (2, 1, "mp"), (1, 2, "mp"), (2, 2, "mp")]


def make(directory: Path, **sizes: Any) -> Path:
    made: Path = load_script("tiny_llama").make(directory, **sizes)
    return made


@pytest.mark.parametrize("kind", ["llama", *FAMILIES])
def test_tokens_of_every_architecture_are_transformers_own(tmp_path: Path, kind: str) -> None:
    model = make_checkpoint(kind, tmp_path)
    assert generate(model) == transformers_greedy(model)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize(("tp", "pp", "executor"), CUTS)
def test_every_cut_on_one_gpu_gives_the_same(
    tmp_path: Path,
    kind: str,
    tp: int,
    pp: int,
    executor: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processes that share the GPU exchange tensors through the host, over gloo."""
    torch.cuda.init()  # this process has seen its devices already
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # the ranks', even where there are more
    model = make_checkpoint(kind, tmp_path)
    cut = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    tokens = generate(model, **cut, distributed_executor_backend=executor)
    assert tokens == transformers_greedy(model)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_graphs_change_nothing(tmp_path: Path, kind: str) -> None:
    model = make_checkpoint(kind, tmp_path)
    warm = SamplingParams(
        temperature=0.9, top_k=20, top_p=0.9, seed=3, max_tokens=TOKENS, ignore_eos=True
    )
    tokens = generate(model, warm)
    assert generate(model, warm, enforce_eager=True) == tokens
    assert generate(model, warm, async_scheduling=False) == tokens
    assert generate(model, SamplingParams(**{**vars(warm), "seed": 4})) != tokens


def test_weights_in_8_bits_choose_as_on_the_cpu(tmp_path: Path) -> None:
    """One request by the thin kernel, several by matrix units."""
    model = make(tmp_path)
    tokens = generate(model, quantization="int8", max_num_seqs=1)
    assert generate(model, quantization="int8") == tokens
    assert generate(model, quantization="int8", device="cpu") == tokens


CHOICES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "bias": {"logit_bias": ((7, 30.0), (9, 29.0))},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.7},
    "one of one": {"temperature": 0.8, "top_k": 1},
    "all but one": {"temperature": 0.8, "min_p": 0.99999},
    "certain": {"temperature": 0.8, "top_p": 1e-6},
    "min_tokens": {"ignore_eos": False, "min_tokens": 20, "logit_bias": ((1, 100.0),)},
    "logprobs": {"logprobs": 3, "prompt_logprobs": 2},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_choices_are_the_cpus(tmp_path: Path, choice: str) -> None:
    model = make(tmp_path)
    sampling = SamplingParams(
        **{"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True, **CHOICES[choice]}
    )
    assert generate(model, sampling) == generate(model, sampling, device="cpu")


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
        assert used_share() < 0.51


def used_share() -> float:
    free, total = torch.cuda.mem_get_info()
    return 1 - free / total
