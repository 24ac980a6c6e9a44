"""A plan drawn: where a GPU's memory goes, and the tokens of every split. Needs matplotlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clusterctl.errors import ConfigError
from clusterctl.planner.gpus import GIB
from clusterctl.planner.memory import Stage
from clusterctl.planner.strategy import Plan, Planned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KINDS = (".png", ".svg")
_PARTS = ("weights", "activations", "outside torch", "KV cache", "not used")
_COLORS = ("#4269d0", "#efb118", "#9c6b4e", "#3ca951", "#dddddd")
_SPLITS_DRAWN = 12


def check_target(path: Path) -> None:
    """Before anything is reckoned. Raises ConfigError for a kind or place that cannot be written,
    or when matplotlib is not installed."""
    if path.suffix not in _KINDS:
        raise ConfigError(f"--plot {path}: the name must end in .png or .svg")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no directory {path.absolute().parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "--plot needs matplotlib", hint="pip install 'clusterctl-inference[plot]'"
        )


def draw(planned: Planned, path: Path) -> None:
    """Left the best plan's stages, or the first legal one's; right the splits that fit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = next((plan for plan in planned.plans if plan.memory is not None), None)
    if shown is not None and shown.memory is not None:
        _draw_stages(left, shown.memory.stages)
        left.set_title(f"Memory of one GPU, {shown.split}")
    _draw_splits(right, planned.plans)
    figure.suptitle(f"{planned.model.name} on {planned.hardware}")
    figure.savefig(path, dpi=120)


def _draw_stages(axes: Axes, stages: Sequence[Stage]) -> None:
    names = [f"stage {index}" for index in range(len(stages))]
    below = [0.0] * len(stages)
    for part, color, sizes in zip(_PARTS, _COLORS, _sizes(stages), strict=True):
        axes.bar(names, sizes, bottom=below, label=part, color=color, width=0.6)
        below = [one + size for one, size in zip(below, sizes, strict=True)]
    axes.axhline(stages[0].gpu.memory_gib, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylabel("GiB (dotted: what the GPU has)")
    axes.margins(x=0.2 if len(stages) > 1 else 0.8)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _sizes(stages: Sequence[Stage]) -> list[list[float]]:
    """Of each part over the stages, in GiB."""
    columns = [
        (stage.weights, stage.activations, stage.outside, max(0, stage.pool), _unused(stage))
        for stage in stages
    ]
    return [[size / GIB for size in part] for part in zip(*columns, strict=True)]


def _unused(stage: Stage) -> int:
    needed = stage.weights + stage.activations + stage.outside + max(0, stage.pool)
    return max(0, stage.gpu.memory_bytes - needed)


def _draw_splits(axes: Axes, plans: Sequence[Plan]) -> None:
    drawn = [(one.split, one.memory) for one in plans if one.fits and one.memory][:_SPLITS_DRAWN]
    axes.set_title("KV cache of a replica, best split first")
    if not drawn:
        axes.text(0.5, 0.5, "no split fits", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    names = [str(split) for split, _ in reversed(drawn)]
    axes.barh(names, [memory.kv_cache_tokens for _, memory in reversed(drawn)], color=_COLORS[3])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="x", rotation=20)
    axes.set_xlabel("tokens (dotted: one request of the longest length)")
    axes.axvline(drawn[0][1].max_model_len, color="black", linewidth=0.8, linestyle=":")
