"""A benchmark drawn: tokens a second and times against the number of requests at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clusterctl.benchmark import Level

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(path: Path, model: str, levels: Sequence[Level]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    rate, times = figure.subplots(1, 2)
    at_once = [one.concurrency for one in levels]
    rate.plot(at_once, [one.output_tokens_per_s for one in levels], marker="o", color="#4269d0")
    rate.set_ylabel("output tokens a second")
    rate.set_ylim(bottom=0)
    _draw_times(times, levels)
    for axes in (rate, times):
        axes.set_xlabel("requests at once")
        axes.set_xticks(at_once)
    figure.suptitle(model)
    figure.savefig(path, dpi=120)


def _draw_times(axes: Axes, levels: Sequence[Level]) -> None:
    lines = {
        "TTFT p50": [one.ttft_p50 for one in levels],
        "TTFT p99": [one.ttft_p99 for one in levels],
        "TPOT p50": [one.tpot_p50 for one in levels],
        "TPOT p99": [one.tpot_p99 for one in levels],
    }
    for name, seconds in lines.items():
        seen = [(one.concurrency, s) for one, s in zip(levels, seconds, strict=True) if s]
        if seen:
            axes.plot(*zip(*seen, strict=True), marker="o", label=name)
    axes.set_ylabel("seconds")
    axes.set_yscale("log")
    axes.legend()
