"""Every architecture against transformers on a small seeded configuration of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.attention.base import KVLayout, Span
from engine.attention.sdpa import SdpaBackend
from engine.communicators import Solo, thread_world
from engine.layers.base import Build, model_shards
from engine.models import build_model
from engine.shapes import ARCHITECTURES, ModelShape, ShapeError, read_shape
from engine.weights import WeightsError, load_weights
from tests.engine.conftest import load_script
from tests.engine.rank_loop import Ranks
from tests.engine.test_models import TOKENS, prompts, transformers_greedy

FAMILIES = load_script("tiny_llama").FAMILIES

MakeFamily = Callable[..., Path]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> MakeFamily:
    """family(model_type) -> the directory of such a model with random weights."""
    made: dict[str, Path] = {}

    def make(kind: str, **changes: Any) -> Path:
        key = f"{kind} {sorted(changes.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(kind)
            write_checkpoint(kind, changes, made[key])
        return made[key]

    return make


def write_checkpoint(kind: str, changes: dict[str, Any], directory: Path) -> None:
    load_script("tiny_llama").make_family(directory, kind, **changes)


def test_every_architecture_is_here(family: MakeFamily) -> None:
    tested = {read_shape(family(kind)).architecture for kind in FAMILIES}
    assert tested | {"LlamaForCausalLM"} == set(ARCHITECTURES)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("kind", FAMILIES)
def test_greedy_tokens_are_transformers(family: MakeFamily, kind: str, tp: int, pp: int) -> None:
    model = family(kind)
    assert Ranks(model, tp, pp).generate(prompts(), TOKENS) == transformers_greedy(model)


@pytest.mark.parametrize("kind", FAMILIES)
def test_prompts_read_in_chunks_give_the_same(family: MakeFamily, kind: str) -> None:
    model = family(kind)
    whole = Ranks(model).generate(prompts(), 4)
    assert Ranks(model).generate(prompts(), 4, chunk=7) == whole


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 8e-2)], ids=["fp32", "bf16"]
)
def test_logits_are_transformers(
    family: MakeFamily, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    directory, prompt = family(kind), torch.tensor(prompts()[2])
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        theirs = reference(prompt.unsqueeze(0)).logits[0]
        ours = logits(directory, prompt, dtype)
    # Of each row, and the middle one of them: in bf16 a router may choose another expert where two
    # are nearly as good, and that row is another function.
    errors = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    assert errors.median().item() < tolerance


def logits(directory: Path, prompt: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    shape = read_shape(directory)
    cpu = torch.device("cpu")
    model = build_model(Build(Solo(), cpu, dtype), shape, range(shape.num_layers))
    load_weights(model, shape, directory)
    layout = KVLayout(shape.num_layers, 16, shape.num_kv_heads, shape.head_dim, dtype)
    plan = SdpaBackend(layout.allocate(4, cpu)).plan([Span(0, len(prompt), (0, 1, 2, 3))])
    hidden = model(model.embed(prompt), torch.arange(len(prompt)), plan)
    return model.logits(hidden)


def test_experts_that_do_not_divide_are_refused(family: MakeFamily) -> None:
    model = family("qwen3_moe", moe_intermediate_size=30)
    with pytest.raises(ShapeError, match=r"30 columns cannot be split over tp=4 \(legal: 1, 2\)"):
        Ranks(model, 4)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_whole_experts_on_each_rank_give_transformers_tokens(
    family: MakeFamily, kind: str, tp: int, pp: int
) -> None:
    """Qwen's 6 over 4 ranks: two ranks hold one more than the others."""
    model = family(kind)
    ranks = Ranks(model, tp, pp, enable_expert_parallel=True)
    assert ranks.generate(prompts(), TOKENS) == transformers_greedy(model)


def test_whole_experts_need_no_columns_that_divide(family: MakeFamily) -> None:
    model = family("qwen3_moe", moe_intermediate_size=30)
    ranks = Ranks(model, 4, enable_expert_parallel=True)
    assert ranks.generate(prompts(), 4) == Ranks(model).generate(prompts(), 4)


def test_a_rank_reads_its_own_experts_alone(family: MakeFamily) -> None:
    """Six over four ranks: each is read by one rank, once and whole."""
    shape = read_shape(family("qwen3_moe"))
    read: list[set[int]] = []
    for context in thread_world(4, 1, torch.device("cpu")).contexts:
        build = Build(context.tp, context.device, torch.float32, expert_parallel=True)
        model = build_model(build, shape, range(shape.num_layers))
        experts = [s for s in model_shards(model) if ".0.mlp.experts." in s.source]
        assert all(shard.target.shape == shard.shape for shard in experts)
        read.append({int(shard.source.split(".")[5]) for shard in experts})
    assert read == [{0}, {1, 2}, {3}, {4, 5}]


def test_expert_parallelism_needs_experts_and_enough_of_them(family: MakeFamily) -> None:
    with pytest.raises(ShapeError, match="needs a mixture of experts, which Qwen3ForCausalLM is"):
        Ranks(family("qwen3"), 2, enable_expert_parallel=True)
    few = family("mixtral", num_local_experts=2)
    with pytest.raises(
        ShapeError, match=r"2 whole experts cannot be split over tp=4 \(legal: 1, 2"
    ):
        Ranks(few, 4, enable_expert_parallel=True)


def test_opt_with_a_narrow_embedding_is_refused(family: MakeFamily) -> None:
    model = family("opt", word_embed_proj_dim=32)
    with pytest.raises(ShapeError, match=r"32 columns before 64 hidden ones \(OPT-350M\)"):
        Ranks(model)


@pytest.mark.parametrize(("kind", "prefix"), [("gpt2", "transformer."), ("opt", "model.")])
def test_names_without_the_optional_prefix(
    family: MakeFamily, kind: str, prefix: str, tmp_path: Path
) -> None:
    """As the published GPT-2 and OPT files have them; GPT-2's also store the causal mask."""
    whole = family(kind)
    tensors = load_file(whole / "model.safetensors")
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if kind == "gpt2":
        bare["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(bare, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((whole / "config.json").read_text())
    assert Ranks(tmp_path).generate(prompts(), 2) == Ranks(whole).generate(prompts(), 2)


def test_a_transposed_matrix_of_another_size_is_named(family: MakeFamily, tmp_path: Path) -> None:
    whole = family("gpt2")
    tensors = load_file(whole / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc.weight"
    save_file({**tensors, name: torch.ones(8, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((whole / "config.json").read_text())
    with pytest.raises(WeightsError, match=r"c_fc\.weight .* \[8, 8\].* makes it \[64, 256\]"):
        Ranks(tmp_path)


def shape_of(kind: str, family: MakeFamily) -> ModelShape:
    return read_shape(family(kind))


def test_what_config_json_says_of_gemma_and_phi(family: MakeFamily) -> None:
    gemma2, gemma3 = shape_of("gemma2", family), shape_of("gemma3_text", family)
    assert (gemma2.attention_softcap, gemma2.logit_softcap, gemma2.query_scalar) == (50, 30, 24)
    assert (gemma3.local_rope_theta, gemma3.rope_theta) == (10000, 1000000)
    assert shape_of("phi3", family).rotary_fraction == 0.5
    assert shape_of("phi3", family).kind_of(0) == "sliding"
