"""clusterctl plan: which parallelism for a model, whether it fits, and what that gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clusterctl import console
from clusterctl.errors import ConfigError, PreflightFailed
from clusterctl.options import ClusterName, ConfigFile, Json, load_spec

if TYPE_CHECKING:
    from clusterctl.planner.gpus import Hardware
    from clusterctl.planner.memory import Memory, Settings
    from clusterctl.planner.strategy import Plan, Planned

SHOWN = 8
_COLUMNS = ("SPLIT", "LEGAL", "FITS", "WEIGHTS/GPU", "KV TOKENS", "CONCURRENCY", "WHY")


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A directory with config.json, a Hub id, or a published name."
        ),
    ],
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            metavar="NxGxNAME",
            help="2x8xH100-80G, also a list: 1x8xH100,1x8xA100; the cluster's own without it.",
        ),
    ] = None,
    tp: Annotated[
        int | None, typer.Option("--tp", metavar="N", min=1, help="Only this tp.")
    ] = None,
    pp: Annotated[
        int | None, typer.Option("--pp", metavar="N", min=1, help="Only this pp.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="bfloat16, fp8, awq, nvfp4 ...")
    ] = "auto",
    kv_dtype: Annotated[
        str, typer.Option("--kv-dtype", metavar="DTYPE", help="Of the KV cache: auto, fp8 ...")
    ] = "auto",
    utilization: Annotated[
        float,
        typer.Option("--gpu-memory-utilization", metavar="U", help="Share of a GPU to use."),
    ] = 0.9,
    max_model_len: Annotated[
        str | None,
        typer.Option(
            "--max-model-len", metavar="TOKENS", help="Longest request; auto: the longest."
        ),
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option("--max-num-batched-tokens", metavar="N", min=1)
    ] = None,
    concurrency: Annotated[
        float | None,
        typer.Option("--concurrency", metavar="N", help="Requests of that length at once."),
    ] = None,
    engine: Annotated[
        Literal["auto", "native", "vllm"], typer.Option("--engine", help="Whose rules hold.")
    ] = "auto",
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", metavar="NxGxNAME", help="Other GPUs beside --gpus; repeat."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw it too, as .png or .svg."),
    ] = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    as_json: Json = False,
) -> None:
    """Say which tp, pp and dp suit a model on these GPUs, whether it fits, and what that gives.

    \b
      clusterctl plan meta-llama/Llama-3.1-70B --gpus 2x8xH100-80G
      clusterctl plan ./model --gpus 1x4xL40S --max-model-len auto
      clusterctl plan deepseek-ai/DeepSeek-V3 --gpus 1x8xH200 --compare 2x8xH100
    """
    from clusterctl.planner import picture
    from clusterctl.planner.gpus import parse_hardware
    from clusterctl.planner.published import find_model
    from clusterctl.planner.strategy import Asked, make_plans

    if plot is not None:
        picture.check_target(plot)
    found = find_model(model, dtype)
    settings = replace(
        _settings(utilization, max_model_len, kv_dtype, max_num_batched_tokens),
        engine="native" if engine == "native" else "vllm",
    )
    here, rdma = (parse_hardware(gpus), None) if gpus else _of_cluster(config, cluster)
    asked = Asked(tp=tp, pp=pp, concurrency=concurrency, engine=engine, rdma=rdma)
    hardware = [here]
    hardware += [parse_hardware(other) for other in compare or ()]
    planned = [make_plans(found, one, settings, asked) for one in hardware]
    if compare:
        _show_comparison(planned, as_json)
    else:
        _show(planned[0], as_json, longest=max_model_len == "auto")
    if plot is not None:
        picture.draw(planned[0], plot)
    if all(one.best is None for one in planned):
        raise typer.Exit(1)


def _settings(
    utilization: float, max_model_len: str | None, kv_dtype: str, batched: int | None
) -> Settings:
    from clusterctl.planner.memory import Settings

    if not 0 < utilization <= 1:
        raise ConfigError(f"--gpu-memory-utilization {utilization:g} must be above 0, at most 1")
    length = None if max_model_len in (None, "auto") else max_model_len
    if length is not None and not (length.isdecimal() and int(length) > 0):
        raise ConfigError(f"--max-model-len {length!r} must be a positive number or auto")
    return Settings(
        utilization=utilization,
        max_model_len=int(length) if length else None,
        kv_dtype=_kv_dtype(kv_dtype),
        max_num_batched_tokens=batched,
    )


def _kv_dtype(text: str) -> str | None:
    from clusterctl.planner.flags import KV_DTYPES

    name = KV_DTYPES.get(text, text)
    if name not in ("auto", "fp8", "bfloat16", "float16", "float32"):
        raise ConfigError(
            f"--kv-dtype {text!r} is not known", hint="auto, fp8, bfloat16, float16 or float32"
        )
    return None if name == "auto" else name


def _of_cluster(config: Path | None, cluster: str | None) -> tuple[Hardware, bool | None]:
    """What the cluster's hosts have now, and whether RDMA joins them."""
    from clusterctl.planner.live import cpu_hardware, hardware_of, rdma_between
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    with console.progress() as report, Session.connect(spec, report=report) as session:
        facts = session.facts()
    slots = [spec.devices_of(node) for node in spec.nodes]
    if all(lent.kind == "cpu" for lent in slots):
        free = [facts[node.name].host.memory_available_bytes for node in spec.nodes]
        return cpu_hardware(free, [lent.count or 1 for lent in slots]), None
    found = hardware_of(facts)
    if found is None:
        raise PreflightFailed(
            "the cluster's hosts have no GPUs that a plan could be made for",
            hint="name GPUs: --gpus 2x8xH100-80G",
        )
    return found, rdma_between(facts)


# --- screens -------------------------------------------------------------------------------------


def _show(planned: Planned, as_json: bool, *, longest: bool) -> None:
    from clusterctl.planner.document import document
    from clusterctl.planner.explain import sentences

    if as_json:
        console.json({"schema_version": console.SCHEMA_VERSION, **document(planned)})
        return
    if planned.best is not None:
        best = planned.plans[planned.best]
        console.line(f"{planned.model.name} on {planned.hardware}: {best.split}")
        _show_stages(best, planned, longest=longest)
    for sentence in sentences(planned):
        console.line(sentence)
    console.line()
    console.table(_COLUMNS, _rows(planned.plans))


def _show_stages(best: Plan, planned: Planned, *, longest: bool) -> None:
    from clusterctl.planner.speed import bounds

    memory = best.memory
    assert memory is not None
    console.table(
        ("STAGE", "GPU", "LAYERS", "WEIGHTS", "ACTIVATIONS", "KV POOL", "KV BYTES/TOKEN", "TOKENS"),
        [_stage_row(index, memory) for index in range(len(memory.stages))],
    )
    speed = bounds(memory, planned.hardware)
    tokens = memory.kv_cache_tokens
    console.line(f"KV cache: {tokens:,} tokens = {tokens // 16:,} blocks of 16")
    console.line(f"concurrency: {memory.max_concurrency:.2f} x {memory.max_model_len:,} tokens")
    if longest:
        console.line(f"longest request: {memory.longest():,} tokens")
    console.line(
        f"at best: decode {speed.decode:,.0f} tokens/s for one request (bandwidth), "
        f"prefill {speed.prefill:,.0f} tokens/s (arithmetic)"
    )
    if best.split.ranks > 1:
        console.line(
            f"a step of {memory.step_tokens:,} tokens: all-reduce {speed.all_reduce_ms:.1f} ms, "
            f"stage hop {speed.hop_ms:.2f} ms ({speed.link})"
        )


def _stage_row(index: int, memory: Memory) -> tuple[str, ...]:
    stage = memory.stages[index]
    tokens = memory.groups.tokens(max(0, stage.pool) // max(1, stage.block_bytes))
    return (
        str(index),
        f"{memory.split.tp} x {stage.gpu.name}",
        f"{len(stage.layers)}",
        f"{stage.weights / 2**30:.2f} GiB",
        f"{stage.activations / 2**30:.2f} GiB",
        f"{stage.pool / 2**30:.2f} GiB",
        f"{stage.kv_bytes_per_token:,}",
        f"{tokens * memory.split.dcp:,}",
    )


def _rows(plans: Sequence[Plan]) -> list[tuple[str, ...]]:
    """The best few, and of those that are not legal one for each reason."""
    legal = [one for one in plans if one.legal][:SHOWN]
    illegal = {one.reasons: one for one in reversed(plans) if not one.legal}
    return [_row(one) for one in (*legal, *sorted(illegal.values(), key=_tensor_size))][: 2 * SHOWN]


def _tensor_size(one: Plan) -> int:
    return one.split.tp


def _row(one: Plan) -> tuple[str, ...]:
    memory = one.memory
    if memory is None:
        return (str(one.split), "no", "no", "-", "-", "-", "; ".join(one.reasons))
    return (
        str(one.split),
        "yes",
        "yes" if one.fits else "no",
        f"{max(stage.weights for stage in memory.stages) / 2**30:.2f} GiB",
        f"{memory.kv_cache_tokens:,}",
        f"{memory.max_concurrency:.2f}",
        "; ".join(one.reasons) or "-",
    )


def _show_comparison(planned: Sequence[Planned], as_json: bool) -> None:
    from clusterctl.planner.document import document

    if as_json:
        documents = [document(one) for one in planned]
        console.json({"schema_version": console.SCHEMA_VERSION, "compared": documents})
        return
    rows = []
    for one in planned:
        index = one.best if one.best is not None else 0
        rows.append((str(one.hardware), *_row(one.plans[index])))
    console.table(("GPUS", *_COLUMNS), rows)
