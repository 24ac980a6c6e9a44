#!/usr/bin/env python3
"""How long `clusterctl --help` takes beside a bare Typer app with the same commands and help texts.

Both run in turn within one run, and medians are compared: this machine's mood hits both. With
--write the result becomes the "Start" section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from page import provenance, write

from clusterctl.cli import COMMANDS

HEADING = "## Start of the command line"
LIMIT = 1.5

BARE_APP = """\
import typer
app = typer.Typer({settings})
{commands}
app()
"""
BARE_COMMAND = """\
@app.command(name={name!r})
def command_{number}() -> None:
    {help!r}
"""


def bare_app(settings: str) -> str:
    commands = [
        BARE_COMMAND.format(name=name, number=number, help=entry.help)
        for number, (name, entry) in enumerate(COMMANDS.items())
    ]
    return BARE_APP.format(settings=settings, commands="\n".join(commands))


def seconds(argv: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def measure(programs: dict[str, list[str]], runs: int, bytecode: Path) -> dict[str, float]:
    """Median seconds of each program, run in turn. The round before them fills the caches, that of
    compiled modules too, which pip fills for whoever installs the package."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    times = [
        {name: seconds(argv, environment) for name, argv in programs.items()}
        for _ in range(runs + 1)
    ]
    return {name: statistics.median(row[name] for row in times[1:]) for name in programs}


def programs(folder: Path) -> dict[str, list[str]]:
    plain, drawn = folder / "plain.py", folder / "drawn.py"
    plain.write_text(bare_app("rich_markup_mode=None"))
    drawn.write_text(bare_app(""))
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "bare Typer app, plain help": [sys.executable, str(plain), "--help"],
        "bare Typer app, as it comes (rich help)": [sys.executable, str(drawn), "--help"],
        "clusterctl --help": [sys.executable, "-m", "clusterctl", "--help"],
    }


def section(medians: dict[str, float], runs: int) -> str:
    bare = medians["bare Typer app, plain help"]
    rows = [
        f"| {name} | {1000 * median:.0f} ms | {median / bare:.2f} |"
        for name, median in medians.items()
    ]
    head = [
        HEADING,
        "",
        f"`scripts/bench/startup.py --write`: medians of {runs} runs in turn; {provenance()}.",
        "",
        "| | median | to the bare app |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        medians = measure(programs(Path(folder)), args.runs, Path(folder) / "bytecode")
    text = section(medians, args.runs)
    print(text)
    if args.write:
        write(HEADING, text)
    ratio = medians["clusterctl --help"] / medians["bare Typer app, plain help"]
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
