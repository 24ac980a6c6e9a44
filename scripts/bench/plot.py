#!/usr/bin/env python3
"""docs/engine.svg: the engine's figures and its peers', as shares of what each machine allows.

    scripts/bench/engine.py ... --record docs/engine-figures.json
    scripts/bench/plot.py

Needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib import pyplot

DOCS = Path(__file__).resolve().parents[2] / "docs"
FIGURES = DOCS / "engine-figures.json"
COLOURS = {
    "ours": "#1f6fb4",
    "vllm": "#e08a1e",
    "vllm, of an H200": "#f2c38a",
    "transformers": "#7a7a7a",
    "generate_batch": "#bdbdbd",
}


def main() -> int:
    pyplot.rcParams["svg.hashsalt"] = "engine"  # the same figures, the same file
    figures: dict[str, dict[str, float]] = json.loads(FIGURES.read_text())
    bars = [
        (what if number == 0 else "", who, reached, reached / figure["limit"])
        for what, figure in figures.items()
        for number, (who, reached) in enumerate(sorted_by_name(figure))
    ]
    drawing, axes = pyplot.subplots(figsize=(9, 0.24 * len(bars) + 1.2))
    for place, (_, who, reached, share) in enumerate(bars):
        axes.barh(place, share, color=COLOURS[who], height=0.8)
        axes.text(share + 0.005, place, f"{reached:,.0f}", va="center", fontsize=7)
    axes.set_yticks(range(len(bars)), [what for what, *_ in bars], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("share of the machine's limit; at the bars tokens a second")
    drawn = {who for _, who, *_ in bars}
    handles = [
        pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[who]) for who in COLOURS if who in drawn
    ]
    axes.legend(handles, [who for who in COLOURS if who in drawn], fontsize=7, loc="lower right")
    drawing.tight_layout()
    drawing.savefig(DOCS / "engine.svg", metadata={"Date": None})
    return 0


def sorted_by_name(figure: dict[str, float]) -> list[tuple[str, float]]:
    """Ours first."""
    return [(who, figure[who]) for who in COLOURS if who in figure]


if __name__ == "__main__":
    sys.exit(main())
