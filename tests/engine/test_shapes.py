from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.shapes import (
    ModelShape,
    RopeScaling,
    ShapeError,
    check_runnable,
    parse_shape,
    pipeline_partition,
    read_shape,
    stage_layers,
)


def shape(**sizes: Any) -> ModelShape:
    llama_8b: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "num_layers": 32,
        "hidden_size": 4096,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position": 131072,
        "dtype": "bfloat16",
    }
    return ModelShape(**{**llama_8b, **sizes})


SMOLLM2 = shape(
    num_layers=30,
    hidden_size=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=49152,
    tie_embeddings=True,
)
QWEN3_600M = shape(
    num_layers=28,
    hidden_size=1024,
    num_heads=16,
    num_kv_heads=8,
    intermediate_size=3072,
    vocab_size=151936,
    tie_embeddings=True,
)
QWEN3_8B = shape(num_layers=36, intermediate_size=12288, vocab_size=151936)

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "vocab_size": 261,
}


def test_importing_shapes_loads_no_torch() -> None:
    code = "import sys, engine.shapes, engine.checkpoint; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_what_config_json_leaves_out_has_the_meaning_transformers_gives_it() -> None:
    parsed = parse_shape(CONFIG)
    assert (parsed.num_kv_heads, parsed.head_dim, parsed.rope_theta) == (8, 8, 10000.0)
    assert (parsed.dtype, parsed.eos_token_ids, parsed.tie_embeddings) == ("float32", (), False)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"rope_theta": 5e5}, (5e5, None)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, (5e5, None)),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
            (1e4, RopeScaling(kind="linear", factor=4.0)),
        ),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 256,
                },
            },
            (5e5, RopeScaling(kind="llama3", factor=8.0, original_max_position=256)),
        ),
    ],
)
def test_rope_as_transformers_4_and_5_write_it(
    keys: dict[str, Any], expected: tuple[float, RopeScaling | None]
) -> None:
    parsed = parse_shape({**CONFIG, **keys})
    assert (parsed.rope_theta, parsed.rope_scaling) == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope scaling 'yarn' is not supported",
        ),
        ({"hidden_act": "xielu"}, "activation xielu is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised weights \(awq\)"),
    ],
)
def test_what_would_give_wrong_text_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        check_runnable(parse_shape({**CONFIG, **keys}))


def test_a_missing_size_is_named() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "vocab_size"}
    with pytest.raises(ShapeError, match="lacks vocab_size"):
        parse_shape(config)


def test_generation_config_knows_more_ends_than_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "eos_token_id": 2}))
    assert read_shape(tmp_path).eos_token_ids == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert read_shape(tmp_path).eos_token_ids == (2, 7)


def test_a_directory_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"it has no config\.json"):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    ("model", "legal"),
    [
        (SMOLLM2, (1, 3)),
        (shape(), (1, 2, 4, 8, 16, 32)),
        (dataclasses.replace(SMOLLM2, intermediate_size=1530), (1, 3, 9)),
        (shape(num_heads=12, num_kv_heads=4, intermediate_size=48), (1, 2, 4, 12)),
    ],
)
def test_legal_tensor_parallel_sizes(model: ModelShape, legal: tuple[int, ...]) -> None:
    assert model.legal_splits() == legal


@pytest.mark.parametrize(
    ("model", "tp", "pp", "message"),
    [
        (SMOLLM2, 2, 1, "9 attention heads cannot be split over tp=2 (legal: 1, 3)"),
        (SMOLLM2, 9, 1, "the MLP's 1536 columns cannot be split over tp=9 (legal: 1, 3)"),
        (
            shape(num_heads=12, num_kv_heads=4, intermediate_size=48),
            3,
            1,
            "4 KV heads cannot be split over tp=3 (legal: 1, 2, 4, 12)",
        ),
        (SMOLLM2, 3, 31, "30 layers cannot be split over pp=31 (legal: 1 to 30)"),
    ],
)
def test_an_illegal_split_names_what_is_legal(
    model: ModelShape, tp: int, pp: int, message: str
) -> None:
    with pytest.raises(ShapeError) as caught:
        model.check_split(tp, pp)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("model", "bytes_a_token"),
    [
        (shape(), 131_072),
        (shape(num_layers=80, num_heads=64), 327_680),
        (shape(num_layers=126, num_heads=128), 516_096),
        (QWEN3_600M, 114_688),
    ],
)
def test_kv_bytes_of_published_models(model: ModelShape, bytes_a_token: int) -> None:
    assert model.kv_bytes_per_token() == bytes_a_token


def test_kv_bytes_of_a_rank() -> None:
    assert shape().kv_bytes_per_token(tp=4, layers=16) == 131_072 // 4 // 2
    assert shape().kv_bytes_per_token(tp=8) == shape().kv_bytes_per_token(tp=32)  # replicated
    assert shape().kv_bytes_per_token(dtype="float32") == 2 * 131_072


@pytest.mark.parametrize(
    ("model", "pp", "stages"),
    [
        (QWEN3_600M, 2, (18, 10)),
        (QWEN3_600M, 4, (9, 9, 9, 1)),
        (QWEN3_8B, 2, (20, 16)),
        (QWEN3_8B, 4, (10, 10, 10, 6)),
        (SMOLLM2, 1, (30,)),
    ],
)
def test_the_last_stage_pays_for_the_lm_head(
    model: ModelShape, pp: int, stages: tuple[int, ...]
) -> None:
    assert model.partition(pp) == stages


def test_the_more_a_layer_reads_the_less_the_head_weighs() -> None:
    assert QWEN3_600M.head_cost(kv_tokens=0) == pytest.approx(9.9, abs=0.05)
    assert QWEN3_600M.head_cost(kv_tokens=32 * 1024) < 2


def test_partition_override() -> None:
    assert SMOLLM2.partition(3, (5, 20, 5)) == (5, 20, 5)
    for wrong in ((15, 15), (10, 10, 9), (0, 15, 15)):
        with pytest.raises(ShapeError, match="must be 3 positive numbers that sum to 30"):
            SMOLLM2.partition(3, wrong)


@given(
    layers=st.integers(1, 12),
    extras=st.lists(st.floats(0, 9), min_size=1, max_size=4).map(tuple),
)
def test_no_other_partition_has_a_faster_slowest_stage(
    layers: int, extras: tuple[float, ...]
) -> None:
    layers = max(layers, len(extras))
    found = pipeline_partition(layers, extras)
    assert sum(found) == layers
    assert _slowest(found, extras) == min(
        _slowest(other, extras) for other in _compositions(layers, len(extras))
    )


def _slowest(stages: tuple[int, ...], extras: tuple[float, ...]) -> float:
    return max(size + extra for size, extra in zip(stages, extras, strict=True))


def _compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    if parts == 1:
        return [(total,)]
    return [
        (first, *rest)
        for first in range(1, total - parts + 2)
        for rest in _compositions(total - first, parts - 1)
    ]


def test_stages_follow_each_other() -> None:
    assert [stage_layers((3, 1, 2), stage) for stage in range(3)] == [
        range(3),
        range(3, 4),
        range(4, 6),
    ]


def test_a_nested_text_config_is_the_decoder() -> None:
    nested = {"architectures": ["SomeVL"], "text_config": {**CONFIG, "model_type": "llama"}}
    assert parse_shape(nested).hidden_size == CONFIG["hidden_size"]
