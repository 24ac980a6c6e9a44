"""A Planned as the document of `plan --json`."""

from __future__ import annotations

from typing import Any

from clusterctl.planner.explain import sentences
from clusterctl.planner.memory import Memory
from clusterctl.planner.speed import bounds
from clusterctl.planner.strategy import Plan, Planned

GIB = 1 << 30


def document(planned: Planned) -> dict[str, Any]:
    """Without schema_version, which the console owns."""
    return {
        "model": planned.model.name,
        "model_source": planned.model.origin,
        "gpus": str(planned.hardware),
        "weights_bytes": planned.model.weights_bytes,
        "weights_source": planned.model.weights_source,
        "plans": [_plan(plan, planned) for plan in planned.plans],
        "best": planned.best,
        "explanation": sentences(planned),
    }


def _plan(plan: Plan, planned: Planned) -> dict[str, Any]:
    split, memory = plan.split, plan.memory
    record: dict[str, Any] = {
        "tp": split.tp,
        "pp": split.pp,
        "dp": split.dp,
        "ep": split.ep,
        "dcp": split.dcp,
        "legal": plan.legal,
        "fits": plan.fits,
        "reasons": list(plan.reasons),
        "weights_gib_per_gpu": None,
        "kv_bytes_per_token_per_gpu": None,
        "kv_cache_tokens": None,
        "max_concurrency": None,
    }
    return record if memory is None else record | _sizes(memory, planned)


def _sizes(memory: Memory, planned: Planned) -> dict[str, Any]:
    speed = bounds(memory, planned.hardware)
    return {
        "weights_gib_per_gpu": round(max(stage.weights for stage in memory.stages) / GIB, 3),
        "kv_bytes_per_token_per_gpu": max(stage.kv_bytes_per_token for stage in memory.stages),
        "kv_cache_tokens": memory.kv_cache_tokens,
        "kv_cache_blocks": memory.kv_cache_tokens // 16,
        "max_concurrency": round(memory.max_concurrency, 2),
        "max_model_len": memory.max_model_len,
        "longest_request": memory.longest(),
        "decode_tokens_per_second_bound": round(speed.decode, 1),
        "prefill_tokens_per_second_bound": round(speed.prefill),
        "stages": [
            {
                "gpu": stage.gpu.name,
                "layers": len(stage.layers),
                "weights_gib": round(stage.weights / GIB, 3),
                "activations_gib": round(stage.activations / GIB, 3),
                "outside_torch_gib": round(stage.outside / GIB, 3),
                "kv_pool_gib": round(stage.pool / GIB, 3),
                "kv_bytes_per_token": stage.kv_bytes_per_token,
            }
            for stage in memory.stages
        ],
    }
