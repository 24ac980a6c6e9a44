"""All splits of a model over a cluster, judged and ranked; the first is the plan.

The order is that of vLLM's parallelism guide and of operators' practice: one GPU when the model
fits it; tensor parallel within a node whose GPUs are linked, pipeline parallel where they are not;
over nodes tensor parallel inside and pipeline parallel across; what is left over becomes replicas.
Latent attention keeps its whole cache on every tensor rank, so that a mixture of experts with it
is better served with one attention replica a GPU and the experts spread over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from clusterctl.planner.gpus import Gpu, Hardware
from clusterctl.planner.legality import Engine, faults, spans_nodes
from clusterctl.planner.memory import Memory, Settings, Split, memory_of
from clusterctl.planner.published import Model
from clusterctl.planner.uneven import by_bandwidth, by_memory

COMFORTABLE = 4.0
"""Requests of the longest length that a deployment should hold at once."""

USABLE_TOKENS = 2048
"""Where no length was asked for, a cache of this many tokens is worth serving at a shorter one."""


@dataclass(frozen=True)
class Asked:
    """What the user fixed. `concurrency`: requests of the longest length at once, as a target.
    `ranks`: no more of them in a replica. `rest`: dp, ep and dcp are as in it, whatever tp and pp
    (its ep > 1: experts lie whole on all tensor ranks of all replicas)."""

    tp: int | None = None
    pp: int | None = None
    concurrency: float | None = None
    engine: Engine = "auto"
    rdma: bool | None = None
    ranks: int | None = None
    rest: Split | None = None


@dataclass(frozen=True)
class Plan:
    """`memory` is None where the split is not legal. `reasons`: why not, or what to know."""

    split: Split
    legal: bool
    fits: bool
    reasons: tuple[str, ...]
    memory: Memory | None


@dataclass(frozen=True)
class Planned:
    """Every plan, best ones first; `best` is an index, None when nothing fits."""

    model: Model
    hardware: Hardware
    settings: Settings
    asked: Asked
    plans: tuple[Plan, ...]

    @property
    def best(self) -> int | None:
        return 0 if self.plans and self.plans[0].legal and self.plans[0].fits else None


def make_plans(model: Model, hardware: Hardware, settings: Settings, asked: Asked) -> Planned:
    """Judge every split. Never raises for a model that fits nowhere: its plans say why."""
    plans = [
        _judge(model, split, hardware, settings, asked) for split in _splits(model, hardware, asked)
    ]
    plans.sort(key=lambda plan: _order(plan, model, hardware, asked))
    return Planned(model, hardware, settings, asked, tuple(plans))


# --- the splits ----------------------------------------------------------------------------------


def _splits(model: Model, hardware: Hardware, asked: Asked) -> Iterator[Split]:
    most = hardware.total if asked.ranks is None else min(hardware.total, asked.ranks)
    sizes = [
        (tp, pp)
        for tp in ([asked.tp] if asked.tp else _tensor_sizes(hardware))
        for pp in ([asked.pp] if asked.pp else _stage_counts(tp, hardware))
        if tp * pp <= most
    ]
    # What was asked for and is too large is judged all the same: the reason is the answer.
    for tp, pp in sizes or [(asked.tp or 1, asked.pp or 1)]:
        if rest := asked.rest:
            yield replace(rest, tp=tp, pp=pp, ep=tp * rest.dp if rest.ep > 1 else 1)
        else:
            yield from _variants(model, Split(tp, pp, _replicas(tp, pp, hardware)))


def _tensor_sizes(hardware: Hardware) -> list[int]:
    over_nodes = {
        group.per_node * n for group in hardware.groups for n in range(2, group.nodes + 1)
    }
    return [*range(1, hardware.per_node + 1), *sorted(over_nodes - {*range(hardware.per_node + 1)})]


def _stage_counts(tp: int, hardware: Hardware) -> list[int]:
    """Within a node any number; over nodes those that leave no node half used."""
    slots = [len(node) for node in hardware.slots(tp)]
    inside = range(1, max(slots, default=0) + 1)
    if tp > hardware.per_node:
        return sorted({1, *inside})
    across = set()
    for group in hardware.groups:
        each = group.per_node // tp
        across |= {n * each for n in range(2, group.nodes + 1)}
    return sorted({*inside, *across, sum(slots)} - {0})


def _replicas(tp: int, pp: int, hardware: Hardware) -> int:
    return len(_places(tp, pp, hardware))


def _places(tp: int, pp: int, hardware: Hardware) -> list[tuple[Gpu, ...]]:
    """The GPU of each stage of every replica: within nodes where one holds all stages, else over
    the nodes in their order."""
    slots = hardware.slots(tp)
    inside = [node[:pp] for node in slots for _ in range(len(node) // pp)]
    if inside:
        return [tuple(gpus) for gpus in inside]
    every = list(chain.from_iterable(slots))
    return [tuple(every[i * pp : (i + 1) * pp]) for i in range(len(every) // pp)]


def _variants(model: Model, plain: Split) -> Iterator[Split]:
    """Plain, with its experts spread, and with its cache spread."""
    yield plain
    shape = model.shape
    ranks = plain.tp * max(1, plain.dp)
    spread = [replace(plain, ep=ranks)] if shape.experts is not None and ranks > 1 else []
    yield from spread
    heads = 1 if shape.latent is not None else shape.num_kv_heads
    if plain.tp > heads and plain.tp % heads == 0 and shape.linear is None:
        yield from (replace(one, dcp=plain.tp // heads) for one in (plain, *spread))


# --- one plan ------------------------------------------------------------------------------------


def _judge(
    model: Model, split: Split, hardware: Hardware, settings: Settings, asked: Asked
) -> Plan:
    wrong = faults(model.shape, split, hardware, asked.engine)
    across = spans_nodes(split, hardware)
    if across and asked.rdma is False:
        wrong.append(f"tp={split.tp} spans nodes, which have no RDMA between them")
    if wrong:
        return Plan(replace(split, dp=max(1, split.dp)), False, False, tuple(wrong), None)
    places = {*_places(split.tp, split.pp, hardware)}
    memory = min(
        (_memory(model, split, gpus, settings, asked) for gpus in places),
        key=lambda one: (one.kv_cache_tokens, one.tightest.pool),
    )
    fits, reasons = _verdict(memory, settings, asked)
    if across:
        reasons.append(f"tp={split.tp} spans nodes: only over RDMA with GPUDirect")
    return Plan(split, True, fits, tuple(reasons), memory)


def _memory(
    model: Model, split: Split, gpus: tuple[Gpu, ...], settings: Settings, asked: Asked
) -> Memory:
    """Of one replica. Where `plan` may choose, unlike GPUs hold as many layers as suits them."""
    native = model.shape.partition(split.pp) if asked.engine == "native" else None
    usual = memory_of(model.shape, split, gpus, settings, partition=native, scale=model.scale)
    if len({*gpus}) == 1 or settings.partition or asked.rest or split.pp > model.shape.num_layers:
        return usual
    shape, scale = model.shape, model.scale
    enough = max(COMFORTABLE, asked.concurrency or 0)
    tokens = enough * usual.max_model_len
    fast = by_bandwidth(shape, split, gpus, settings, tokens=tokens, scale=scale)
    roomy = by_memory(shape, split, gpus, settings, scale=scale)
    found = [
        memory_of(shape, split, gpus, settings, partition=cut, scale=scale) for cut in (fast, roomy)
    ]
    return found[0] if found[0].max_concurrency >= enough else max(found, key=lambda m: m.blocks)


def _verdict(memory: Memory, settings: Settings, asked: Asked) -> tuple[bool, list[str]]:
    stage, length = memory.tightest, memory.max_model_len
    if stage.pool <= 0:
        need = stage.weights + stage.activations + stage.outside
        return False, [
            f"weights {_gib(stage.weights)} + activations {_gib(stage.activations)} + "
            f"{_gib(stage.outside)} outside torch = {_gib(need)} GiB, of "
            f"{_gib(stage.budget)} GiB that may be used"
        ]
    target = asked.concurrency
    if target is not None and memory.max_concurrency < target:
        return False, [
            f"holds {memory.max_concurrency:.2f} requests of {length:,} tokens, not {target:g}"
        ]
    if memory.holds_one:
        return True, []
    longest = memory.longest()
    said = (
        f"one request of {length:,} tokens does not fit the {memory.kv_cache_tokens:,} tokens of "
        f"KV cache; the longest that does has {longest:,}"
    )
    return settings.max_model_len is None and longest >= USABLE_TOKENS, [said]


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"


# --- the order -----------------------------------------------------------------------------------


def _order(plan: Plan, model: Model, hardware: Hardware, asked: Asked) -> tuple[float, ...]:
    """Smaller is better."""
    if plan.memory is None or not plan.fits:
        size = plan.split.ranks
        return (9.0, float(not plan.legal), -size, plan.split.ep, plan.split.dcp)
    concurrency = plan.memory.max_concurrency
    comfortable = concurrency >= max(COMFORTABLE, asked.concurrency or 0)
    short = float(not plan.memory.holds_one)
    # Context parallel decoding is young: only where the cache would be too small without.
    return (
        short,
        plan.split.dcp,
        _tier(plan.split, model, hardware, _linked(plan.memory)),
        *_within(plan.split, hardware, comfortable, _linked(plan.memory)),
    )


def _linked(memory: Memory) -> bool:
    return all(stage.gpu.linked for stage in memory.stages)


def _tier(split: Split, model: Model, hardware: Hardware, linked: bool) -> float:
    """One GPU, one node, several nodes, tensor parallel over nodes."""
    if split.ranks == 1 and split.ep == 1:
        return 0
    if split.ep > 1 and split.ranks == 1 and model.shape.latent and linked:
        return 0.5 if split.ep <= hardware.per_node else 1.5
    if spans_nodes(split, hardware):
        return 3
    together = split.ranks * (split.dp if split.ep > split.tp else 1)
    if split.ep > 1 and (together > hardware.per_node or split.ranks == 1):
        return 2.5  # experts over the network, or a whole attention beside every expert
    if split.ranks <= hardware.per_node:
        return 1
    return 2


def _within(split: Split, hardware: Hardware, comfortable: bool, linked: bool) -> tuple[float, ...]:
    """Tensor parallel where GPUs are linked, pipeline where not; no wider than is comfortable,
    or as wide as can be; over nodes as wide as a node, on as few nodes as can be."""
    main, other = (split.tp, split.pp) if linked else (split.pp, split.tp)
    if split.ranks > hardware.per_node and linked:
        return (-split.tp, split.ep > 1, not comfortable, split.pp)
    width = main if comfortable else -main
    return (other > 1, split.ep > 1, not comfortable, width, other)
