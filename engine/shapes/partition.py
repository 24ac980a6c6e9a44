"""How a model's layers are shared out over pipeline stages."""

from __future__ import annotations


def pipeline_partition(layers: int, extra_costs: tuple[float, ...]) -> tuple[int, ...]:
    """Layers of each stage so that the slowest stage is as fast as can be.

    `extra_costs` is what a stage does beside its layers, in layers (the last one: the LM head).
    Every stage gets one layer; each further layer goes to the stage that is then cheapest.
    Between equals the later one: the first stage also holds the embedding.
    """
    sizes = [1] * len(extra_costs)
    for _ in range(layers - len(sizes)):
        cheapest = min(range(len(sizes)), key=lambda i: (sizes[i] + extra_costs[i], -i))
        sizes[cheapest] += 1
    return tuple(sizes)


def stage_layers(partition: tuple[int, ...], stage: int) -> range:
    """The global indices of the layers that `stage` holds."""
    first = sum(partition[:stage])
    return range(first, first + partition[stage])
