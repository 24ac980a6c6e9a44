"""Whole models against transformers, token for token, over every way of cutting them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.communicators import Solo
from engine.layers.base import Build
from engine.models import build_model
from engine.shapes import ShapeError, parse_shape
from tests.engine.conftest import MakeCheckpoint
from tests.engine.rank_loop import Ranks
from tests.engine.test_shapes import CONFIG

TOKENS = 24


def prompts(vocab: int = 261) -> list[list[int]]:
    noise = torch.Generator().manual_seed(1)
    return [
        torch.randint(2, vocab, (length,), generator=noise).tolist() for length in (3, 17, 40, 1)
    ]


def transformers_greedy(model: Path, tokens: int = TOKENS) -> list[list[int]]:
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return [
        reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in prompts()
    ]


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2), (8, 1), (1, 4)])
def test_every_cut_gives_transformers_greedy_tokens(
    checkpoint: MakeCheckpoint, tp: int, pp: int
) -> None:
    model = checkpoint()
    assert Ranks(model, tp, pp).generate(prompts(), TOKENS) == transformers_greedy(model)


@pytest.mark.parametrize(
    "sizes",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8},
        {"num_key_value_heads": 1},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ],
    ids=["tied", "biases", "head_dim", "one-kv-head", "llama3-rope"],
)
def test_variants_of_the_architecture(checkpoint: MakeCheckpoint, sizes: dict[str, Any]) -> None:
    model = checkpoint(**sizes)
    assert Ranks(model, 2, 2).generate(prompts(), TOKENS) == transformers_greedy(model)


def test_an_uneven_pipeline(checkpoint: MakeCheckpoint) -> None:
    model = checkpoint()
    ranks = Ranks(model, 1, 2, pipeline_partition=(3, 1))
    assert [runner.layout.layers for runner in ranks.runners] == [3, 1]
    assert ranks.generate(prompts(), TOKENS) == transformers_greedy(model)


def test_an_unknown_architecture_is_refused_by_name() -> None:
    shape = parse_shape({**CONFIG, "architectures": ["MambaForCausalLM"]})
    build = Build(Solo(), torch.device("meta"), torch.float32)
    with pytest.raises(
        ShapeError, match=r"MambaForCausalLM is not supported \(known: GPT2LMHeadModel, "
    ):
        build_model(build, shape, range(shape.num_layers))
