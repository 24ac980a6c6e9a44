"""Where the measurements are kept: docs/benchmarks.md, a section for each."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"


def provenance() -> str:
    """Commit, date and machine, as every section names them."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return (
        f"commit {commit}, {datetime.date.today()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores ({platform.machine()}), shared"
    )


def write(heading: str, text: str) -> None:
    """Put the section into the page, in place of the one that is there. `text` begins with the
    heading."""
    page = PAGE.read_text() if PAGE.exists() else "# Benchmarks\n"
    before, found, after = page.partition(heading)
    _, next_heading, rest = after.partition("\n## ")
    tail = f"\n{next_heading.lstrip()}{rest}" if found and next_heading else ""
    PAGE.write_text(f"{before.rstrip()}\n\n{text}{tail}")
