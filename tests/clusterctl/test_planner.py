"""The planner against published facts: sizes, startup logs, deployments."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterctl import cli
from clusterctl.errors import ConfigError
from clusterctl.planner.gpus import find_gpu, parse_hardware
from clusterctl.planner.legality import faults
from clusterctl.planner.live import cpu_hardware
from clusterctl.planner.memory import Settings, Split, memory_of
from clusterctl.planner.published import find_model, table
from clusterctl.planner.strategy import Asked, Planned, make_plans
from clusterctl.planner.tensors import parameters, rank_bytes
from engine.shapes import ModelShape, parse_shape

GIB = 1 << 30


def planned(model: str, gpus: str, *, dtype: str = "auto", **rest: Any) -> Planned:
    asked = {key: rest.pop(key) for key in ("tp", "pp", "engine", "concurrency") if key in rest}
    return make_plans(
        find_model(model, dtype), parse_hardware(gpus), Settings(**rest), Asked(**asked)
    )


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("meta-llama/Llama-3.1-8B", 8.030),
        ("meta-llama/Llama-3.3-70B-Instruct", 70.554),
        ("meta-llama/Llama-3.1-405B", 405.853),
        ("meta-llama/Llama-3.2-1B", 1.236),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 108.6),
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 401.6),
        ("Qwen/Qwen3-32B", 32.762),
        ("Qwen/Qwen3-30B-A3B", 30.532),
        ("Qwen/Qwen3-235B-A22B", 235.094),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 79.67),
        ("Qwen/Qwen2.5-72B-Instruct", 72.706),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8.292),
        ("Qwen/Qwen2-57B-A14B", 57.41),
        ("deepseek-ai/DeepSeek-V2", 235.741),
        ("deepseek-ai/DeepSeek-V2-Lite", 15.706),
        ("deepseek-ai/DeepSeek-R1", 671.026),
        ("moonshotai/Kimi-K2-Instruct", 1026.4),
        ("zai-org/GLM-4.5-Air", 106.85),
        ("openai/gpt-oss-20b", 20.915),
        ("openai/gpt-oss-120b", 116.829),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46.703),
        ("mistralai/Mixtral-8x22B-v0.1", 140.62),
        ("mistralai/Mistral-Large-Instruct-2411", 122.61),
        ("mistralai/Mistral-Small-24B-Instruct-2501", 23.572),
        ("google/gemma-2-27b-it", 27.227),
        ("google/gemma-3-27b-it", 27.432),
        ("google/gemma-3-4b-it", 4.300),
        ("microsoft/phi-4", 14.66),
        ("databricks/dbrx-instruct", 131.597),
        ("facebook/opt-13b", 12.853),
        ("gpt2", 0.124),
        ("tiiuae/falcon-40b", 41.84),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512", 675.0),
        ("meta-llama/Llama-3.2-90B-Vision-Instruct", 88.6),
    ],
)
def test_published_parameter_counts(model: str, billions: float) -> None:
    assert parameters(find_model(model).shape) / 1e9 == pytest.approx(billions, rel=0.01)


def test_every_entry_of_the_table_can_be_read_and_names_its_source() -> None:
    for entry in table().values():
        assert entry["source"]
        parse_shape(entry["config"])


@pytest.mark.parametrize(
    ("model", "gib"),
    [
        ("deepseek-ai/DeepSeek-V3", 641.30),  # total_size 688,586,727,753
        ("meta-llama/Llama-3.1-70B", 131.42),
        ("openai/gpt-oss-120b", 60.77),
        ("moonshotai/Kimi-K2.5", 554.3),
        ("meta-llama/Llama-3.1-405B-Instruct-FP8", 462.0),  # 8 x 57.75 in vllm#6746
    ],
)
def test_published_checkpoint_sizes(model: str, gib: float) -> None:
    assert find_model(model).weights_bytes / GIB == pytest.approx(gib, rel=0.02)


@pytest.mark.parametrize(
    ("model", "bytes_a_token"),
    [
        ("meta-llama/Llama-3.1-8B", 131_072),
        ("meta-llama/Llama-3.1-70B", 327_680),
        ("meta-llama/Llama-3.1-405B", 516_096),
        ("Qwen/Qwen3-235B-A22B", 192_512),
        ("deepseek-ai/DeepSeek-R1", 70_272),
        ("moonshotai/Kimi-K2-Instruct", 70_272),
    ],
)
def test_published_kv_bytes(model: str, bytes_a_token: int) -> None:
    assert find_model(model).shape.kv_bytes_per_token() == bytes_a_token


@pytest.mark.parametrize(
    ("model", "tp", "gib"),
    [
        ("openai/gpt-oss-120b", 1, 65.97),  # vllm#23278; 60.8 on disk
        ("openai/gpt-oss-20b", 1, 13.72),  # vLLM 0.19 on an A100; 12.8 on disk
        ("Qwen/Qwen3-30B-A3B", 4, 14.25),  # vllm#17327
        ("meta-llama/Llama-3.1-405B-Instruct-FP8", 8, 57.75),  # vllm#6746
    ],
)
def test_weights_as_vllm_loaded_them(model: str, tp: int, gib: float) -> None:
    shape = find_model(model).shape
    held = rank_bytes(shape, range(shape.num_layers), tp)
    assert held / GIB == pytest.approx(gib, rel=0.02)


def test_vllm_keeps_one_block_for_itself() -> None:
    """As 0.32 refused 131,072 tokens in a cache of just so many, and took 130,944."""
    shape = replace(llama(4, 256, 512, 8, 1000), dtype="float32")
    slot = cpu_hardware([8 * GIB], [1]).gpu
    settings = Settings(kv_cache_bytes=GIB, max_model_len=131_072)
    memory = memory_of(shape, Split(1, 1), (slot,), settings)
    assert (memory.kv_cache_tokens, memory.holds_one) == (131_072, False)
    assert memory.holds(131_072 - 128)


def test_compressed_attention_that_is_not_reckoned_is_refused(tmp_path: Path) -> None:
    config = {**table()["deepseek-ai/DeepSeek-V3"]["config"], "compress_ratios": [0, 4, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="compress_ratios"):
        find_model(str(tmp_path))


# Each row: model, dtype, GPUs, then the split, the tokens, how near, and where they were read.
LOGGED = [
    ("meta-llama/Meta-Llama-3-8B", "auto", "1x1xH100", 1, 1, 436_551, 0.05, "vllm#10511"),
    ("Qwen/Qwen3-8B", "auto", "1x1xH200", 1, 1, 791_792, 0.02, "measured, vLLM 0.24.0"),
    ("meta-llama/Llama-3.1-70B", "auto", "1x4xA100-80G", 4, 1, 464_000, 0.05, "estimate"),
    ("meta-llama/Llama-3.1-405B", "auto", "2x8xH100", 8, 2, 697_000, 0.05, "estimate"),
    ("meta-llama/Llama-3.1-405B", "auto", "1x8xH200", 8, 1, 471_000, 0.05, "estimate"),
    ("meta-llama/Llama-3.1-405B", "auto", "1x8xMI300X", 8, 1, 1_250_000, 0.05, "estimate"),
]


@pytest.mark.parametrize("row", LOGGED, ids=lambda row: f"{row[0]}-{row[2]}")
def test_logged_kv_cache_tokens(row: tuple[Any, ...]) -> None:
    model, dtype, gpus, tp, pp, tokens, tolerance, _ = row
    found = planned(model, gpus, dtype=dtype, tp=tp, pp=pp)
    assert found.best is not None
    memory = found.plans[found.best].memory
    assert memory is not None
    assert memory.kv_cache_tokens == pytest.approx(tokens, rel=tolerance)


@pytest.mark.parametrize(
    ("model", "dtype", "gpus", "fits", "rest"),
    [
        ("meta-llama/Llama-3.1-405B", "auto", "2x8xH100-80G", True, {"tp": 8, "pp": 2}),
        ("meta-llama/Llama-3.1-405B", "auto", "1x8xH100-80G", False, {}),
        ("meta-llama/Llama-3.1-405B", "auto", "1x8xH200", True, {"tp": 8}),
        ("meta-llama/Llama-3.1-405B", "auto", "1x8xMI300X", True, {"tp": 8}),
        ("meta-llama/Llama-3.1-405B-Instruct-FP8", "auto", "1x8xH100", True, {"tp": 8}),
        ("meta-llama/Llama-3.1-405B", "awq", "2x1xGB10", True, {"tp": 2, "max_model_len": 64}),
        ("meta-llama/Llama-3.3-70B-Instruct", "fp8", "1x1xH100", True, {"max_model_len": 4096}),
        ("meta-llama/Llama-3.3-70B-Instruct", "nvfp4", "1x1xB200", True, {}),
        ("meta-llama/Llama-3.3-70B-Instruct", "auto", "1x1xMI300X", True, {}),
        ("meta-llama/Llama-3.3-70B-Instruct", "auto", "1x1xH100", False, {}),
        ("deepseek-ai/DeepSeek-V3", "auto", "1x8xH100", False, {}),
        ("deepseek-ai/DeepSeek-V3", "auto", "1x8xH200", True, {"tp": 8}),
        ("deepseek-ai/DeepSeek-R1", "auto", "1x8xMI300X", True, {"tp": 8}),
        ("deepseek-ai/DeepSeek-R1", "awq", "1x8xH100", True, {"tp": 8}),
        ("deepseek-ai/DeepSeek-V3", "auto", "2x8xH20", True, {"tp": 16}),
        ("Qwen/Qwen3-235B-A22B", "auto", "1x4xH200", True, {"tp": 4}),
        ("Qwen/Qwen3-235B-A22B-FP8", "auto", "1x4xH100", True, {"tp": 4}),
        ("moonshotai/Kimi-K2-Instruct", "auto", "2x8xH800", True, {"tp": 8, "pp": 2}),
        ("moonshotai/Kimi-K2.5", "auto", "2x8xH100", True, {"tp": 16}),
        ("MiniMaxAI/MiniMax-M2.7", "auto", "1x4xH100", True, {"max_model_len": 131072}),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512", "auto", "1x8xH200", True, {"tp": 8}),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512-NVFP4", "auto", "1x4xB200", True, {"tp": 4}),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512", "auto", "1x8xH100", False, {}),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8", "auto", "1x8xH200", True, {}),
        ("zai-org/GLM-4.5-FP8", "auto", "1x8xH100", True, {}),
        ("Qwen/Qwen2.5-72B-Instruct", "gptq", "1x1xA100-80G", True, {"max_model_len": 16384}),
        ("openai/gpt-oss-120b", "auto", "1x1xH100", True, {}),
        ("openai/gpt-oss-20b", "auto", "1x1xRTX4090", True, {}),
        ("meta-llama/Llama-3.1-8B", "auto", "1x1xRTX3090", True, {"max_model_len": 20000}),
        ("meta-llama/Llama-3.1-8B", "auto", "1x1xT4", False, {"max_model_len": 8192}),
    ],
)
def test_published_deployments_fit_and_others_do_not(
    model: str, dtype: str, gpus: str, fits: bool, rest: dict[str, Any]
) -> None:
    assert (planned(model, gpus, dtype=dtype, **rest).best is not None) is fits


@pytest.mark.parametrize(
    ("model", "gpus", "split"),
    [
        ("meta-llama/Llama-3.1-8B", "1x8xH100", "tp=1 pp=1 dp=8"),
        ("meta-llama/Llama-3.1-70B", "1x4xA100-80G", "tp=4 pp=1"),
        ("meta-llama/Llama-3.1-405B", "2x8xH100", "tp=8 pp=2"),
        ("Qwen/Qwen3-32B", "1x4xL40S", "tp=1 pp=3"),
        ("Qwen/Qwen3-235B-A22B-FP8", "1x8xH100", "tp=4 pp=1 dp=2"),
        ("deepseek-ai/DeepSeek-V3", "1x8xH200", "tp=1 pp=1 dp=8 ep=8"),
        ("moonshotai/Kimi-K2-Instruct", "2x8xH800", "tp=8 pp=2"),
    ],
)
def test_the_plan_an_expert_would_make(model: str, gpus: str, split: str) -> None:
    found = planned(model, gpus)
    assert found.best is not None
    assert str(found.plans[found.best].split) == split


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"tp": 7}, "64 attention heads cannot be split over tp=7"),
        ({"pp": 100}, "pp=100 is more than the model's 80 layers"),
        ({"tp": 16, "pp": 2}, "tp x pp x dp = 32 is more than the 16 GPUs of 2x8xH100-80G"),
    ],
)
def test_nonsense_is_refused_with_its_numbers(asked: dict[str, int], reason: str) -> None:
    found = planned("meta-llama/Llama-3.1-70B", "2x8xH100", **asked)
    assert found.best is None
    assert any(reason in one for one in found.plans[0].reasons)


def test_block_fp8_limits_tensor_parallelism_unless_experts_lie_whole() -> None:
    found = planned("Qwen/Qwen3-235B-A22B-FP8", "1x8xH100", tp=8, pp=1)
    legal = {plan.split.ep: plan.legal for plan in found.plans if plan.split.dcp == 1}
    assert legal == {1: False, 8: True}


def test_the_native_engine_spreads_experts_over_tensor_ranks_alone() -> None:
    shape = find_model("Qwen/Qwen3-30B-A3B", "auto").shape
    reasons = {
        ep: faults(shape, Split(4, 1, dp=2, ep=ep), cpu_hardware([64 << 30], [8]), "native")
        for ep in (1, 4, 8)
    }
    alone = "the native engine spreads experts over the tensor ranks of a replica alone (ep=tp)"
    assert reasons == {1: [], 4: [], 8: [alone]}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("meta-llama/Llama-3.1-8B", None),
        ("deepseek-ai/DeepSeek-V3", "architecture DeepseekV3ForCausalLM is not supported"),
        ("google/gemma-2-9b-it", None),
    ],
)
def test_the_native_engine_runs_its_own_list_of_architectures(
    model: str, reason: str | None
) -> None:
    found = planned(model, "1x8xH100", engine="native")
    assert (found.best is not None) is (reason is None)
    assert reason is None or any(reason in one for one in found.plans[0].reasons)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("H100", "H100-80G"),
        ("NVIDIA H100 80GB HBM3", "H100-80G"),
        ("A100-40G", "A100-40G"),
        ("NVIDIA A100-SXM4-80GB", "A100-80G"),
        ("rtx 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
        ("AMD Instinct MI300X", "MI300X"),
        ("B200-192G", "B200"),
        ("V100-32G", "V100-32G"),
        ("NVIDIA A100 80GB PCIe", "A100-80G"),
        ("NVIDIA A100-PCIE-40GB", "A100-40G"),
        ("NVIDIA H100 PCIe", "H100-PCIE"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("Tesla P100-PCIE-16GB", "P100-16G"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA GeForce RTX 4090 D", "RTX4090"),
    ],
)
def test_gpu_names_as_people_and_drivers_write_them(written: str, name: str) -> None:
    assert find_gpu(written).name == name


def test_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="nearest: H100"):
        parse_hardware("2x8xH101")


def llama(layers: int, hidden: int, inner: int, heads: int, vocab: int) -> ModelShape:
    return ModelShape(
        architecture="LlamaForCausalLM",
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=hidden // heads,
        intermediate_size=inner,
        vocab_size=vocab,
        max_position=8192,
        dtype="bfloat16",
    )


@pytest.mark.parametrize(
    ("shape", "share", "step", "logged"),
    [
        (llama(16, 2048, 8192, 32, 128256), 0.9, 2048, 2_198_384),
        (llama(16, 2048, 8192, 32, 128256), 0.5, 8192, 1_145_184),
        (llama(16, 2048, 8192, 32, 128256), 0.2, 512, 385_744),
        (llama(28, 3072, 8192, 24, 32000), 0.9, 2048, 601_504),
        (llama(28, 3072, 8192, 24, 32000), 0.5, 8192, 300_144),
        (llama(28, 3072, 8192, 24, 32000), 0.2, 512, 83_808),
    ],
)
def test_our_engine_logged_this_on_an_h100(
    shape: ModelShape, share: float, step: int, logged: int
) -> None:
    """docs/planning-engine-cuda.json"""
    gpu = replace(find_gpu("H100"), memory_gib=79.1787109375)
    settings = Settings(utilization=share, max_num_batched_tokens=step, engine="native")
    memory = memory_of(shape, Split(1, 1), (gpu,), settings)
    assert memory.kv_cache_tokens == pytest.approx(logged, rel=0.05)


# --- the command ---------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    code = cli.run(["plan", *args, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, found


def test_json_of_a_directory_with_config_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = table()["meta-llama/Meta-Llama-3.1-8B"]["config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, found = run(capsys, str(tmp_path), "--gpus", "1x1xH100-80G")
    assert (code, found["weights_source"]) == (0, "shapes")
    best = found["plans"][found["best"]]
    assert (best["tp"], best["pp"], best["dp"], best["ep"]) == (1, 1, 1, 1)
    assert best["legal"]
    assert best["fits"]
    assert best["kv_bytes_per_token_per_gpu"] == 131_072
    assert best["weights_gib_per_gpu"] == pytest.approx(14.958, abs=0.01)


def test_the_index_decides_the_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = table()["meta-llama/Meta-Llama-3.1-8B"]["config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    index = {"metadata": {"total_size": 20_000_000_000}, "weight_map": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    _, found = run(capsys, str(tmp_path), "--gpus", "1x1xH100-80G")
    assert (found["weights_bytes"], found["weights_source"]) == (20_000_000_000, "index")
    assert found["plans"][0]["weights_gib_per_gpu"] == pytest.approx(20e9 / GIB, abs=0.01)


def test_an_illegal_forced_value_is_exit_1_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, found = run(capsys, "meta-llama/Llama-3.1-70B", "--gpus", "2x8xH100", "--tp", "7")
    assert (code, found["best"]) == (1, None)
    assert "attention heads" in found["plans"][0]["reasons"][0]
    assert found["explanation"][-1] == "Nearest that works: tp=8 pp=1 dp=2."


def test_an_unknown_model_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "meta-llama/Llama-9-8B", "--gpus", "1x1xH100")
    assert code == 2
    assert "nearest: meta-llama" in found["error"]["message"]


def test_fp8_halves_the_cache_of_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = run(capsys, "meta-llama/Llama-3.1-8B", "--gpus", "1x1xH100", "--kv-dtype", "fp8")
    assert found["plans"][0]["kv_bytes_per_token_per_gpu"] == 65_536


def test_what_is_asked_for_at_once_must_fit_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("meta-llama/Llama-3.1-8B", "--gpus", "1x1xH100", "--max-model-len", "8192")
    assert run(capsys, *asked, "--concurrency", "50")[0] == 0
    assert run(capsys, *asked, "--concurrency", "100")[0] == 1


@pytest.mark.parametrize("name", ["out.png", "out.svg"])
def test_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    target = tmp_path / name
    asked = ("meta-llama/Llama-3.1-405B", "--gpus", "2x8xH100", "--plot", str(target))
    assert run(capsys, *asked)[0] == 0
    begin = b"\x89PNG" if name.endswith("png") else b"<?xml"
    assert target.read_bytes().startswith(begin)


def test_plot_of_another_kind_is_refused_first(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "gpt2", "--gpus", "1x1xL4", "--plot", "out.gif")
    assert (code, found["error"]["message"]) == (
        2,
        "--plot out.gif: the name must end in .png or .svg",
    )
