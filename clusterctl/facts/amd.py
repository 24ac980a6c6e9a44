"""AMD GPUs as AMD's own tools tell of them, beyond what the kernel's topology says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from clusterctl.facts.sections import Section
from clusterctl.facts.types import AmdGpu

PROBES: Mapping[str, str] = {
    "rocm_smi": """
command -v rocm-smi >/dev/null 2>&1 || exit 127
rocm-smi --showproductname --showmeminfo vram --json""",
    "amd_smi": """
command -v amd-smi >/dev/null 2>&1 || exit 127
amd-smi metric --ecc --json""",
}


def parse_amd(sections: Mapping[str, Section]) -> tuple[AmdGpu, ...] | None:
    """None where neither tool is there or answers."""
    series = dict(parse_rocm_smi(sections["rocm_smi"]))
    errors = dict(parse_ecc(sections["amd_smi"]))
    if not (series or errors):
        return None
    return tuple(
        AmdGpu(index, series.get(index), errors.get(index)) for index in sorted({*series, *errors})
    )


def parse_rocm_smi(section: Section) -> Iterator[tuple[int, str]]:
    """`rocm-smi --json`: `{"card0": {"Card Series": ...}}`; older ones write `Card series`."""
    for card, said in _json(section, {}).items():
        name = said.get("Card Series") or said.get("Card series")
        if card.startswith("card") and name:
            yield int(card[4:]), name


def parse_ecc(section: Section) -> Iterator[tuple[int, int]]:
    """`amd-smi metric --ecc --json`: a list of GPUs, since ROCm 7 under the key gpu_data."""
    said = _json(section, [])
    for gpu in said["gpu_data"] if isinstance(said, dict) else said:
        ecc = gpu.get("ecc")
        count = ecc.get("total_uncorrectable_count") if isinstance(ecc, dict) else None
        if isinstance(count, int):  # "N/A" where the card counts none
            yield gpu["gpu"], count


def _json(section: Section, default: Any) -> Any:
    """rocm-smi writes warnings before its JSON."""
    lines = section.stdout.splitlines()
    start = next((i for i, line in enumerate(lines) if line[:1] in "[{" and line), None)
    return default if start is None else json.loads("\n".join(lines[start:]))
