"""Layers cut over a group of threads against the same layer whole."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from engine.attention.base import Turn
from engine.communicators import thread_world
from engine.layers.activation import gate
from engine.layers.base import Build, ShardedLayer
from engine.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from engine.layers.linear import (
    ColumnParallelLinear,
    RowParallelLinear,
    even_parts,
    qkv_parts,
)
from engine.layers.norm import RMSNorm
from engine.layers.rotary import Rotary
from engine.layers.sampler import Sampler
from engine.sampling_params import SamplingParams
from engine.shapes import ModelShape, RopeScaling
from engine.step import ScheduledRequest

CPU = torch.device("cpu")
Tensors = Mapping[str, torch.Tensor]


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def fill(layer: ShardedLayer, name: str, tensors: Tensors) -> None:
    for shard in layer.shards(name):
        whole = tensors[shard.source]
        assert tuple(whole.shape) == shard.shape
        shard.target.copy_(whole[shard.index])


def on_ranks(tp: int, call: Callable[[Build], Any]) -> list[Any]:
    contexts = thread_world(tp, 1, CPU).contexts
    with ThreadPoolExecutor(tp) as pool:
        return list(pool.map(lambda c: call(Build(c.tp, CPU, torch.float32)), contexts))


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_column_then_row_is_the_whole_mlp(tp: int, bias: bool) -> None:
    tensors = {
        "mlp.gate_proj.weight": noise(16, 8, seed=1),
        "mlp.up_proj.weight": noise(16, 8, seed=2),
        "mlp.down_proj.weight": noise(8, 16, seed=3),
        "mlp.gate_proj.bias": noise(16, seed=4) * bias,
        "mlp.up_proj.bias": noise(16, seed=5) * bias,
        "mlp.down_proj.bias": noise(8, seed=6) * bias,
    }
    inputs = noise(5, 8)

    def mlp(build: Build) -> torch.Tensor:
        up = ColumnParallelLinear(build, 8, even_parts(build, ("gate_proj", "up_proj"), 16), bias)
        down = RowParallelLinear(build, 16, 8, bias)
        fill(up, "mlp.gate_up_proj", tensors)
        fill(down, "mlp.down_proj", tensors)
        return down(gate(torch.nn.functional.silu, up(inputs)))

    gates = inputs @ tensors["mlp.gate_proj.weight"].T + tensors["mlp.gate_proj.bias"]
    up = inputs @ tensors["mlp.up_proj.weight"].T + tensors["mlp.up_proj.bias"]
    inner = torch.nn.functional.silu(gates) * up
    expected = inner @ tensors["mlp.down_proj.weight"].T + tensors["mlp.down_proj.bias"]
    for output in on_ranks(tp, mlp):
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("tp", "held"),
    [
        (1, [((0, 8), (0, 2))]),
        (2, [((0, 4), (0, 1)), ((4, 8), (1, 2))]),
        (4, [((0, 2), (0, 1)), ((2, 4), (0, 1)), ((4, 6), (1, 2)), ((6, 8), (1, 2))]),
    ],
)
def test_each_rank_holds_the_kv_heads_of_its_query_heads(
    tp: int, held: list[tuple[tuple[int, int], tuple[int, int]]]
) -> None:
    dim = 3
    parts = on_ranks(tp, lambda build: qkv_parts(build, heads=8, kv_heads=2, head_dim=dim))
    for (query, key, value), (query_heads, kv_heads) in zip(parts, held, strict=True):
        assert (query.source, key.source, value.source) == ("q_proj", "k_proj", "v_proj")
        assert (query.held.start, query.held.stop) == tuple(head * dim for head in query_heads)
        assert (key.held.start, key.held.stop) == tuple(head * dim for head in kv_heads)
        assert value.held == key.held


@pytest.mark.parametrize("vocab", [8, 7, 5])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_vocabulary_that_does_not_divide_is_padded(vocab: int, tp: int) -> None:
    table = {"embed.weight": noise(vocab, 6), "head.weight": noise(vocab, 6, seed=1)}
    token_ids = torch.arange(vocab).flip(0)
    hidden = noise(3, 6, seed=2)

    def both(build: Build) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = VocabParallelEmbedding(build, vocab, 6)
        head = ParallelLMHead(build, vocab, 6, source="head")
        for layer in (embedding, head):
            layer.weight.fill_(1e9)  # what padding holds must not be seen
        fill(embedding, "embed", table)
        fill(head, "lm_head", table)
        return embedding(token_ids), head(hidden)

    for embedded, logits in on_ranks(tp, both):
        torch.testing.assert_close(embedded, table["embed.weight"].flip(0))
        torch.testing.assert_close(logits, hidden @ table["head.weight"].T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["compiled", "in torch"])
def test_bug_the_norm_changes_the_stream_in_place(dtype: torch.dtype) -> None:
    stream, block = noise(4, 8).to(dtype), noise(4, 8, seed=2).to(dtype)
    before = stream.clone(), block.clone()
    (norm,) = on_ranks(1, lambda build: RMSNorm(build, 8, 1e-5))
    fill(norm, "norm", {"norm.weight": noise(8, seed=1)})
    norm.to(dtype)
    normed, total = norm.after(stream, block)
    torch.testing.assert_close(total, before[0] + before[1])
    torch.testing.assert_close(normed, norm(before[0] + before[1]))
    assert torch.equal(stream, before[0])
    assert torch.equal(block, before[1])


def test_norm_is_root_mean_square_and_leaves_its_input_alone() -> None:
    inputs, weight = noise(4, 8), noise(8, seed=1)
    before = inputs.clone()
    (norm,) = on_ranks(1, lambda build: RMSNorm(build, 8, 1e-5))
    fill(norm, "norm", {"norm.weight": weight})
    expected = inputs / (inputs.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(norm(inputs), expected)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize(
    ("scaling", "theirs"),
    [
        (None, {"rope_type": "default"}),
        (RopeScaling(kind="linear", factor=4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            RopeScaling(kind="llama3", factor=8.0, original_max_position=64),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
)
def test_rotation_is_transformers_own(scaling: RopeScaling | None, theirs: dict[str, Any]) -> None:
    shape = ModelShape(
        architecture="LlamaForCausalLM",
        num_layers=1,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        intermediate_size=1,
        vocab_size=1,
        max_position=512,
        rope_theta=5e4,
        rope_scaling=scaling,
    )
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 5e4, **theirs},
    )
    positions = torch.tensor([0, 1, 7, 100, 511])
    query, key = noise(5, 4, 16), noise(5, 4, 16, seed=1)
    cos, sin = LlamaRotaryEmbedding(config)(query, positions.unsqueeze(0))
    expected = apply_rotary_pos_emb(query[None], key[None], cos, sin, unsqueeze_dim=2)
    rotary = Rotary(shape, CPU)
    turn = Turn(rotary.cos, rotary.sin)
    torch.testing.assert_close(turn.apply(query, positions, None), expected[0][0])
    torch.testing.assert_close(turn.apply(key, positions, None), expected[1][0])


def request(name: str = "r", *, num_generated: int = 0, **sampling: Any) -> ScheduledRequest:
    params = SamplingParams(**sampling)
    return ScheduledRequest(name, (1,), 0, (0,), True, params, num_generated)


def distribution(logits: list[float], draws: int = 4000, **sampling: Any) -> dict[int, float]:
    """How often each id is drawn, over the successive tokens of one seeded request."""
    requests = [request(num_generated=i, seed=3, **sampling) for i in range(draws)]
    ids = Sampler(0)(torch.tensor(logits).repeat(draws, 1), requests)
    return {token: count / draws for token, count in sorted(Counter(ids).items())}


LOGITS = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, {0: 0.1, 1: 0.4, 2: 0.2, 3: 0.3}),
        ({"temperature": 0.5}, {0: 1 / 30, 1: 16 / 30, 2: 4 / 30, 3: 9 / 30}),
        ({"top_k": 2}, {1: 4 / 7, 3: 3 / 7}),
        ({"top_k": 1}, {1: 1.0}),
        ({"top_k": 9}, {0: 0.1, 1: 0.4, 2: 0.2, 3: 0.3}),
        ({"top_p": 0.6}, {1: 4 / 7, 3: 3 / 7}),
        ({"top_p": 0.3}, {1: 1.0}),
        ({"top_k": 3, "top_p": 0.5}, {1: 4 / 7, 3: 3 / 7}),
        ({"min_p": 0.6}, {1: 4 / 7, 3: 3 / 7}),
        ({"temperature": 0.0}, {1: 1.0}),
        ({"temperature": 1e-38}, {1: 1.0}),
        ({"top_p": 1e-50}, {1: 1.0}),
        ({"top_k": 2**63}, {0: 0.1, 1: 0.4, 2: 0.2, 3: 0.3}),
        ({"temperature": 1e300, "min_tokens": 1}, {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}),
    ],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(
    sampling: dict[str, Any], expected: dict[int, float]
) -> None:
    drawn = distribution(LOGITS, **sampling)
    assert drawn.keys() == expected.keys()
    assert drawn == pytest.approx(expected, abs=0.03)


def test_a_draw_depends_on_seed_and_place_not_on_the_batch() -> None:
    logits = noise(6, 50)
    sampler = Sampler(0)
    requests = [request(f"r{i}", seed=i % 2, num_generated=i) for i in range(6)]
    together = sampler(logits.clone(), requests)
    alone = [sampler(logits[i : i + 1].clone(), [requests[i]])[0] for i in range(6)]
    backwards = sampler(logits.flip(0), requests[::-1])
    assert together == alone == backwards[::-1]


def test_requests_without_a_seed_draw_apart_and_the_engines_seed_decides() -> None:
    logits = torch.zeros(8, 1000)
    unseeded = [request(f"r{i}") for i in range(8)]
    assert len(set(Sampler(0)(logits.clone(), unseeded))) > 1
    assert Sampler(0)(logits.clone(), unseeded) == Sampler(0)(logits.clone(), unseeded)
    assert Sampler(0)(logits.clone(), unseeded) != Sampler(1)(logits.clone(), unseeded)


def test_greedy_and_drawn_requests_share_a_batch() -> None:
    logits = torch.tensor([[0.0, 9.0, 8.0]]).repeat(3, 1)
    mixed = [request(temperature=0.0), request(top_k=1, seed=1), request(temperature=0.0)]
    assert Sampler(0)(logits, mixed) == [1, 1, 1]
