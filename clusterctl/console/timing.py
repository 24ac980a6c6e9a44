"""Where the seconds went."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clusterctl.console.drawing import grid, settings, show
from clusterctl.events import Stage

if TYPE_CHECKING:
    from rich.console import RenderableType


def stages(stages: Sequence[Stage], before: Sequence[Stage] = ()) -> None:
    """Seconds of each stage, as a result."""
    if stages:
        show(_stage_grid(stages, before), sys.stdout)


def timeline(stages: Sequence[Stage], before: Sequence[Stage] = ()) -> None:
    """Seconds of each stage beside those of the run before, if there was one; gone with -q."""
    if not settings.quiet and stages:
        show(_stage_grid(stages, before), sys.stderr)


def _stage_grid(stages: Sequence[Stage], before: Sequence[Stage]) -> RenderableType:
    """Longest ones easy to see; the slowest host of those that had a part in it."""
    longest = max(stage.seconds for stage in stages) or 1.0
    then = {stage.step: f"{stage.seconds:.1f} s" for stage in before}
    rows = [
        (
            stage.step,
            f"{stage.seconds:.1f} s",
            *([then.get(stage.step, "-")] if before else []),
            _slowest(stage),
            "━" * max(1, round(24 * stage.seconds / longest)),
        )
        for stage in stages
    ]
    columns = ("STAGE", "TIME", *(["LAST"] if before else []), "SLOWEST HOST", "")
    return grid(columns, rows)


def _slowest(stage: Stage) -> str:
    if len(stage.hosts) < 2:
        return ""
    host = max(stage.hosts, key=lambda name: stage.hosts[name])
    return f"{host} {stage.hosts[host]:.1f} s"
