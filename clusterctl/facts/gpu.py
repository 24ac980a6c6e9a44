"""GPUs: NVIDIA as nvidia-smi tells, AMD as the kernel's compute topology tells."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping

from clusterctl.facts.sections import NOT_FOUND, Section
from clusterctl.facts.types import Gpu, GpuFacts

PROBES: Mapping[str, str] = {
    "nvidia_query": "nvidia-smi --format=csv,noheader,nounits"
    " --query-gpu=index,name,uuid,memory.total,memory.used,driver_version",
    "nvidia_banner": "nvidia-smi",
    "nvidia_module": "cat /proc/driver/nvidia/version",
    "gpus_on_pci": """
for d in /sys/bus/pci/devices/*; do
  vendor=; class=
  read -r vendor 2>/dev/null <"$d/vendor"; read -r class 2>/dev/null <"$d/class"
  case $vendor$class in
    0x10de0x03*) echo nvidia;; 0x10020x03*) echo amd;; 0x10de0x0680*) echo nvswitch;;
  esac
done""",
    # Nodes with SIMD units are GPUs, the others are CPU sockets.
    "amd_kfd": """
get() { v=; read -r v 2>/dev/null <"$1"; printf '\\t%s' "$v"; }
for n in /sys/class/kfd/kfd/topology/nodes/*; do
  simd=0; minor=; gfx=
  while read -r key value; do
    case $key in
      simd_count) simd=$value;; drm_render_minor) minor=$value;; gfx_target_version) gfx=$value;;
    esac
  done 2>/dev/null <"$n/properties"
  [ "$simd" -gt 0 ] || continue
  d=/sys/class/drm/renderD$minor/device
  printf '%s' "$gfx"; get "$d/product_name"; get "$d/unique_id"
  get "$d/mem_info_vram_total"; get "$d/mem_info_vram_used"; echo
done""",
    "amd_module": "cat /sys/module/amdgpu/version",
}

_MODULE_VERSION = re.compile(r"Kernel Module\s+(?:for \S+\s+)?(\d[\d.]*)")
_CUDA_VERSION = re.compile(r"CUDA (?:UMD )?Version\s*:\s*(\d[\d.]*)")


def parse_gpus(sections: Mapping[str, Section]) -> GpuFacts:
    nvidia = parse_nvidia(
        query=sections["nvidia_query"],
        banner=sections["nvidia_banner"],
        module=sections["nvidia_module"],
        on_pci=sections["gpus_on_pci"].stdout.split().count("nvidia"),
    )
    amd = parse_kfd(sections["amd_kfd"].stdout)
    if not amd:
        return nvidia
    return GpuFacts(
        gpus=nvidia.gpus + amd,
        driver=nvidia.driver or sections["amd_module"].text,
        cuda=nvidia.cuda,
        error=nvidia.error,
    )


def parse_nvidia(*, query: Section, banner: Section, module: Section, on_pci: int) -> GpuFacts:
    loaded = module_version(module.stdout)
    if query.exit_code == NOT_FOUND:
        return GpuFacts(driver=loaded, error=_without_smi(loaded, on_pci))
    if not query.ok:
        return GpuFacts(driver=loaded, error=f"nvidia-smi: {query.complaint}")
    rows = list(csv.reader(query.stdout.strip().splitlines(), skipinitialspace=True))
    good = [row for row in rows if len(row) == 6 and row[0].isdecimal()]
    bad = [", ".join(row) for row in rows if row not in good]
    return GpuFacts(
        gpus=tuple(_nvidia_gpu(row) for row in good),
        driver=good[0][5] if good else loaded,
        cuda=cuda_version(banner.stdout),
        error=f"nvidia-smi: {' '.join(bad)}" if bad else None,
    )


def _without_smi(loaded: str | None, on_pci: int) -> str | None:
    if loaded:
        return f"the NVIDIA kernel module {loaded} is loaded, but there is no nvidia-smi"
    if on_pci:
        return f"{on_pci} NVIDIA GPU(s) on the PCI bus, but no driver"
    return None


def _nvidia_gpu(row: list[str]) -> Gpu:
    index, name, uuid, total, used, _ = row
    return Gpu(int(index), "nvidia", name, uuid, _mib(total), _mib(used))


def _mib(text: str) -> int | None:
    """None for "[N/A]" (unified memory), "[Unknown Error]", "ERR!" and their like."""
    return int(text) if text.isdecimal() else None


def module_version(text: str) -> str | None:
    """/proc/driver/nvidia/version"""
    match = _MODULE_VERSION.search(text)
    return match[1] if match else None


def cuda_version(text: str) -> str | None:
    """The newest CUDA that the driver serves, from nvidia-smi's banner."""
    match = _CUDA_VERSION.search(text)
    return match[1] if match else None


def parse_kfd(text: str) -> tuple[Gpu, ...]:
    """Lines of gfx target version, product, unique id, VRAM total and used (bytes), by tabs."""
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    return tuple(_amd_gpu(index, row) for index, row in enumerate(rows))


def _amd_gpu(index: int, row: list[str]) -> Gpu:
    gfx, product, unique_id, total, used = row
    return Gpu(
        index, "amd", product or f"AMD {_gfx_name(gfx)}", unique_id, _to_mib(total), _to_mib(used)
    )


def _gfx_name(version: str) -> str:
    """90402 -> gfx942: major, two digits minor, two digits stepping (hexadecimal in the name)."""
    number = int(version)
    return f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"


def _to_mib(text: str) -> int | None:
    return int(text) // 1024**2 if text.isdecimal() else None
