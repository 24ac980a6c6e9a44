from __future__ import annotations

from typing import Any

import pytest

from clusterctl.planner.cache import cache_groups
from clusterctl.planner.memory import even_partition
from clusterctl.planner.quantised import covers
from clusterctl.planner.tensors import checkpoint_bytes, parameters, rank_bytes
from engine.shapes import ModelShape, Quantisation, parse_shape, stage_layers
from tests.engine.test_shapes import CONFIG, QWEN3_8B, SMOLLM2, shape


def config(architecture: str, **keys: Any) -> dict[str, Any]:
    return {**CONFIG, "architectures": [architecture], "dtype": "bfloat16", **keys}


DEEPSEEK_V3 = config(
    "DeepseekV3ForCausalLM",
    model_type="deepseek_v3",
    hidden_size=7168,
    intermediate_size=18432,
    num_hidden_layers=61,
    num_attention_heads=128,
    num_key_value_heads=128,
    max_position_embeddings=163840,
    vocab_size=129280,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    moe_intermediate_size=2048,
    first_k_dense_replace=3,
    moe_layer_freq=1,
    topk_method="noaux_tc",
    num_nextn_predict_layers=1,
    quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
)
GPT_OSS_120B = config(
    "GptOssForCausalLM",
    model_type="gpt_oss",
    attention_bias=True,
    head_dim=64,
    hidden_size=2880,
    intermediate_size=2880,
    layer_types=["sliding_attention", "full_attention"] * 18,
    max_position_embeddings=131072,
    num_attention_heads=64,
    num_hidden_layers=36,
    num_key_value_heads=8,
    num_local_experts=128,
    num_experts_per_tok=4,
    sliding_window=128,
    vocab_size=201088,
    quantization_config={
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    },
)


def test_deepseek_v3_weighs_what_its_index_says() -> None:
    model = parse_shape(DEEPSEEK_V3)
    assert parameters(model) / 1e9 == pytest.approx(671.03, rel=1e-4)
    # metadata.total_size of its model.safetensors.index.json, the draft layer included
    assert checkpoint_bytes(model) == pytest.approx(688_586_727_753, rel=1e-4)
    # Latent attention: every rank keeps the whole cache, 61 x (512 + 64) elements a token.
    assert model.kv_bytes_per_token(tp=8) == 70_272


def test_gpt_oss_weighs_what_it_was_published_with() -> None:
    model = parse_shape(GPT_OSS_120B)
    assert parameters(model) / 1e9 == pytest.approx(116.83, rel=1e-4)
    assert checkpoint_bytes(model) == pytest.approx(65.25e9, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "billions"), [(shape(), 8.030), (QWEN3_8B, 8.191), (SMOLLM2, 0.1345)]
)
def test_parameters_of_published_models(model: ModelShape, billions: float) -> None:
    assert parameters(model) / 1e9 == pytest.approx(billions, rel=1e-3)


def test_gpt2_words() -> None:
    model = parse_shape(
        {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "vocab_size": 50257,
            "activation_function": "gelu_new",
        }
    )
    assert parameters(model) == 124_439_808


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("pp", [1, 2, 3])
def test_ranks_hold_the_whole_model_between_them(tp: int, pp: int) -> None:
    model = shape()
    cut = even_partition(model.num_layers, pp)
    held = sum(rank_bytes(model, stage_layers(cut, stage), tp) for stage in range(pp))
    norms = 2 * model.num_layers * model.hidden_size * 2 + model.hidden_size * 2
    assert tp * held == checkpoint_bytes(model) + (tp - 1) * norms


def test_vllm_gives_what_is_left_over_to_the_stages_before_the_last() -> None:
    assert even_partition(126, 4) == (31, 32, 32, 31)
    assert even_partition(61, 2) == (31, 30)


def test_a_hybrid_cache_is_cut_as_vllm_cuts_it() -> None:
    model = parse_shape(GPT_OSS_120B)
    groups = cache_groups(model, tp=1)
    assert [len(layers) for _, layers in groups.groups] == [18, 18]
    # A request of 131072 tokens: all of them in one group, a window and a step in the other.
    assert groups.blocks_of(model, 131072, 8192) == 131072 // 16 + (127 + 8192) // 16 + 2


@pytest.mark.parametrize(
    ("patterns", "module", "quantised"),
    [
        (("lm_head",), "model.layers.0.mlp.gate_proj", True),
        (("gate",), "model.layers.0.mlp.gate", False),
        (("gate",), "model.layers.0.mlp.gate_proj", True),
        (("model.layers.*.self_attn",), "model.layers.7.self_attn.q_proj", False),
        (("model.layers.1.self_attn",), "model.layers.11.self_attn.q_proj", True),
        (("re:.*self_attn.*",), "model.layers.7.self_attn.q_proj", False),
        (("language_model.model.layers.0.mlp*",), "model.layers.0.mlp.up_proj", False),
    ],
)
def test_modules_that_stay_unquantised(
    patterns: tuple[str, ...], module: str, quantised: bool
) -> None:
    assert covers(Quantisation(method="fp8", bits=8, ignored=patterns), module) is quantised
