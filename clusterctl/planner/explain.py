"""A plan in words: why this one, and what would work where nothing does."""

from __future__ import annotations

from dataclasses import replace

from clusterctl.planner.memory import Memory
from clusterctl.planner.strategy import COMFORTABLE, Asked, Plan, Planned, make_plans

_MOST_NODES = 64


def sentences(planned: Planned) -> list[str]:
    """Three: how large the model is, why it is split so, and what that gives."""
    if planned.best is None:
        return refusal(planned)
    plan = planned.plans[planned.best]
    assert plan.memory is not None
    return [_size(planned), _why(planned, plan), _gives(planned, plan, plan.memory)]


def _size(planned: Planned) -> str:
    model, gpu = planned.model, planned.hardware.gpu
    usable = gpu.memory_gib * planned.settings.utilization
    quantised = model.shape.quantisation
    kind = quantised.method if quantised else model.shape.dtype
    return (
        f"{model.name} holds {model.weights_bytes / 2**30:.1f} GiB of {kind} weights; "
        f"one {gpu.name} may give {usable:.1f} GiB "
        f"({planned.settings.utilization:g} of {gpu.memory_gib:g})."
    )


def _why(planned: Planned, plan: Plan) -> str:
    split, hardware, asked = plan.split, planned.hardware, planned.asked
    if asked.tp or asked.pp:
        return "It is what was asked for, and legal."
    if split.ranks == 1 and split.ep == 1:
        fits = "It fits" if plan.memory is None or plan.memory.holds_one else "Its weights fit"
        return f"{fits} one {hardware.gpu.name}, so that no parallelism inside is needed."
    if split.ranks == 1:
        return (
            "Latent attention would keep its whole cache on every tensor rank, so each GPU runs "
            f"its own attention (dp={split.dp}), and all share the experts (ep={split.ep})."
        )
    if split.tp > hardware.per_node:
        return f"Only tp={split.tp} over nodes holds it, which needs RDMA with GPUDirect."
    if split.ranks <= hardware.per_node:
        return _inside_a_node(planned, plan)
    cut = _uneven(plan)
    if split.tp == 1:
        return (
            f"It does not fit one node, so a pipeline of {split.pp} GPUs crosses the network{cut}."
        )
    return (
        f"It does not fit one node, so tensor parallelism stays inside the node (tp={split.tp}), "
        f"where links are fast, and the pipeline (pp={split.pp}) crosses the network{cut}."
    )


def _uneven(plan: Plan) -> str:
    """Where stages are on unlike GPUs: how many layers each holds, and how that is asked for."""
    stages = plan.memory.stages if plan.memory else ()
    if len({stage.gpu for stage in stages}) < 2:
        return ""
    cut = ",".join(str(len(stage.layers)) for stage in stages)
    return (
        f"; its stages hold {cut} layers, as their GPUs' bandwidth and memory allow "
        f"(--pipeline-partition {cut}, of vLLM VLLM_PP_LAYER_PARTITION={cut})"
    )


def _inside_a_node(planned: Planned, plan: Plan) -> str:
    split, gpu = plan.split, planned.hardware.gpu
    if split.tp > 1 and split.pp == 1:
        spread = f" with its experts spread over them (ep={split.ep})" if split.ep > 1 else ""
        return f"It fits {split.tp} linked GPUs of a node by tensor parallelism{spread}."
    if split.tp == 1:
        linked = planned.hardware.linked
        reason = "" if linked else f", since {gpu.name} have no link between them"
        return (
            f"It fits a node as a pipeline of {split.pp} GPUs{reason}; uneven splits are no harm."
        )
    return f"Its heads allow tp={split.tp} only, so pp={split.pp} uses the node's other GPUs."


def _gives(planned: Planned, plan: Plan, memory: Memory) -> str:
    tokens, length = memory.kv_cache_tokens, memory.max_model_len
    told = (
        f"{tokens:,} tokens of KV cache remain, {memory.max_concurrency:.1f} requests of "
        f"{length:,} tokens at once"
    )
    if not memory.holds_one:
        told = (
            f"{tokens:,} tokens of KV cache remain, less than one request of {length:,}: "
            f"serve it with --max-model-len {memory.longest()}"
        )
    elif memory.max_concurrency < COMFORTABLE and _could_shrink(planned):
        told += "; --kv-dtype fp8 would about double them"
    each = f"In each of {plan.split.dp} replicas " if plan.split.dp > 1 else ""
    return f"{each}{told}."


def _could_shrink(planned: Planned) -> bool:
    """Whether `plan` may be asked for a smaller cache: not what `serve` asked, nor our engine."""
    settings = planned.settings
    return settings.kv_dtype is None and settings.engine == "vllm" and planned.asked.rest is None


def refusal(planned: Planned) -> list[str]:
    """Why nothing fits, with the numbers, and the nearest thing that does."""
    first = planned.plans[0]
    reasons = list(dict.fromkeys(first.reasons))
    return [f"{first.split}: {'; '.join(reasons)}.", *nearest(planned)]


def nearest(planned: Planned) -> list[str]:
    """The smallest change that works: the sizes freed, a shorter request, more nodes, fp8."""
    asked = planned.asked
    if asked.tp or asked.pp:
        free = make_plans(
            planned.model, planned.hardware, planned.settings, replace(asked, tp=None, pp=None)
        )
        if free.best is not None:
            return [f"Nearest that works: {free.plans[free.best].split}."]
    if shorter := _shorter(planned):
        return [shorter]
    return _larger(planned)


def _shorter(planned: Planned) -> str | None:
    legal = [plan.memory for plan in planned.plans if plan.memory is not None]
    longest = max((memory.longest() for memory in legal if memory.blocks), default=0)
    if longest < 1 or planned.asked.concurrency is not None:
        return None
    return f"Nearest that works: --max-model-len {longest}."


def _larger(planned: Planned) -> list[str]:
    hardware, asked = planned.hardware, planned.asked
    if not any(plan.legal for plan in planned.plans):
        return []  # more of what cannot run it at all is no help
    nodes = hardware.nodes + 1
    while nodes <= _MOST_NODES:
        more = hardware.with_more(nodes - hardware.nodes)
        found = make_plans(planned.model, more, planned.settings, Asked(engine=asked.engine))
        if found.best is not None:
            return [f"Nearest that works: {more} with {found.plans[found.best].split}."]
        nodes += 1 if nodes < 8 else nodes // 2
    return [f"Not even {_MOST_NODES} such nodes hold it."]
