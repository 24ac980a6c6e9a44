"""How layers are shared out over stages whose GPUs are unlike: by bandwidth, so that no stage waits
for a slower one, or by memory, where that would leave too small a cache. PURE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clusterctl.planner.gpus import Gpu
from clusterctl.planner.memory import Settings, Split, memory_of
from clusterctl.planner.tensors import rank_bytes
from engine.shapes import ModelShape


@dataclass(frozen=True)
class _Stages:
    """Bytes of one rank of each stage: what it may use for layers and cache; of a layer's weights
    (the mean of all) and of a token in it; `head`: what the last stage reads besides."""

    gpus: tuple[Gpu, ...]
    room: tuple[float, ...]
    layer: float
    token: int
    head: float

    def tokens(self, stage: int, layers: int) -> float:
        return (self.room[stage] - layers * self.layer) / (layers * self.token)

    def seconds(self, stage: int, layers: int) -> float:
        """To read the weights, times 1e9."""
        head = self.head if stage == len(self.gpus) - 1 else 0.0
        return (layers * self.layer + head) / self.gpus[stage].bandwidth


def by_bandwidth(
    shape: ModelShape,
    split: Split,
    gpus: tuple[Gpu, ...],
    settings: Settings,
    *,
    tokens: float,
    scale: float,
) -> tuple[int, ...]:
    """The slowest stage reads its weights as fast as can be, with room for so many `tokens` on
    each."""
    stages = _stages(shape, split, gpus, settings, scale)
    return _greedy(
        shape.num_layers,
        len(gpus),
        lambda stage, layers: (
            float(stages.tokens(stage, layers) < tokens),
            stages.seconds(stage, layers),
        ),
    )


def by_memory(
    shape: ModelShape, split: Split, gpus: tuple[Gpu, ...], settings: Settings, *, scale: float
) -> tuple[int, ...]:
    """The stage with least room keeps as many tokens as can be."""
    stages = _stages(shape, split, gpus, settings, scale)
    return _greedy(
        shape.num_layers, len(gpus), lambda stage, layers: (-stages.tokens(stage, layers),)
    )


def _greedy(
    layers: int, stages: int, cost: Callable[[int, int], tuple[float, ...]]
) -> tuple[int, ...]:
    """Every stage gets one layer; each further one goes where the cost is then smallest."""
    sizes = [1] * stages
    for _ in range(layers - stages):
        cheapest = min(range(stages), key=lambda stage: (cost(stage, sizes[stage] + 1), -stage))
        sizes[cheapest] += 1
    return tuple(sizes)


def _stages(
    shape: ModelShape, split: Split, gpus: tuple[Gpu, ...], settings: Settings, scale: float
) -> _Stages:
    layers = shape.num_layers
    embedding = rank_bytes(shape, range(0), split.tp, split.ep) * scale
    head = rank_bytes(shape, range(layers, layers), split.tp, split.ep) * scale
    every = rank_bytes(shape, range(layers), split.tp, split.ep) * scale
    seen = memory_of(shape, split, gpus, settings, scale=scale).stages
    room = [float(stage.budget - stage.activations - stage.outside) for stage in seen]
    room[0] -= embedding
    room[-1] -= head
    token = shape.kv_bytes_per_token(tp=split.tp, layers=1, dtype=settings.kv_dtype)
    return _Stages(gpus, tuple(room), (every - embedding - head) / layers, token, head)
