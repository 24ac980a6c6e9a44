"""What NVIDIA's tools and kernel modules say beyond the list of GPUs: health, links, owners."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from xml.etree import ElementTree

from clusterctl.facts.sections import Section
from clusterctl.facts.types import GpuHealth, GpuPath, GpuProcess, NvidiaFacts, NvLinks

SERVICES = ("nvidia-fabricmanager", "nvidia-persistenced")
MODULES = ("nvidia_peermem", "nv_peer_mem", "nvidia_uvm", "gdrdrv")

PROBES: Mapping[str, str] = {
    # The XML, then a line for each process in it: PID, its user, its cgroup.
    "nvidia_xml": """
command -v nvidia-smi >/dev/null 2>&1 || exit 127
xml=$(nvidia-smi -q -x); rc=$?
printf '%s\\n' "$xml"
for pid in $(printf '%s\\n' "$xml" | sed -n 's/.*<pid.\\([0-9]*\\)<.*/\\1/p' | sort -u); do
  printf '%s\\t%s\\t%s\\n' "$pid" "$(stat -c %U "/proc/$pid" 2>/dev/null)" \
    "$(tail -n 1 "/proc/$pid/cgroup" 2>/dev/null)"
done
exit $rc""",
    "nvidia_topo": "nvidia-smi topo -m",
    "nvidia_nvlink": "nvidia-smi nvlink -s",
    "nvidia_services": f"""
command -v systemctl >/dev/null 2>&1 || exit 127
for unit in {" ".join(SERVICES)}; do
  printf '%s %s\\n' "$unit" "$(systemctl is-active "$unit")"
done""",
    "nvidia_on_disk": "modinfo -F version nvidia",
    "nvidia_modules": f"grep -oE '^({'|'.join(MODULES)}) ' /proc/modules",
    "nvidia_imex": "ls /dev/nvidia-caps-imex-channels",
    "nvidia_ctk": "nvidia-ctk --version",
    "nvidia_cdi": "ls /etc/cdi /var/run/cdi 2>/dev/null | grep nvidia",
}

_XML_END = "</nvidia_smi_log>"
_SLOWDOWNS = re.compile(r"clocks_(?:event|throttle)_reason_(hw_slowdown|hw_\w+_slowdown)$")
_CONTAINER = re.compile(r"([0-9a-f]{64})")


def parse_nvidia(sections: Mapping[str, Section], *, switches: int) -> NvidiaFacts:
    xml, topo, links = (sections[f"nvidia_{name}"] for name in ("xml", "topo", "nvlink"))
    paths, numa = parse_topo(topo.stdout)
    loaded = sections["nvidia_module"].stdout
    return NvidiaFacts(
        health=parse_health(xml.stdout) if _XML_END in xml.stdout else None,
        links=parse_nvlink(links.stdout) if links.ok else None,
        paths=paths if topo.ok else None,
        numa=numa,
        services=parse_services(sections["nvidia_services"]),
        switches=switches,
        driver_on_disk=sections["nvidia_on_disk"].text,
        open_module="Open Kernel Module" in loaded if loaded.strip() else None,
        modules=tuple(sections["nvidia_modules"].stdout.split()),
        imex_channels=sections["nvidia_imex"].text is not None,
        toolkit=parse_toolkit(sections["nvidia_ctk"]),
        cdi=sections["nvidia_cdi"].text is not None,
    )


# --- nvidia-smi -q -x ----------------------------------------------------------------------------


def parse_health(text: str) -> tuple[GpuHealth, ...]:
    """`nvidia-smi -q -x`, with the owners of its processes on lines behind it. A field that says
    N/A, ERR! or nothing is None."""
    xml, end, behind = text.partition(_XML_END)
    owners = dict(_owners(behind))
    root = ElementTree.fromstring(xml[xml.index("<nvidia_smi_log") :] + end)
    return tuple(_health(index, gpu, owners) for index, gpu in enumerate(root.findall("gpu")))


def _owners(text: str) -> Iterator[tuple[int, tuple[str | None, str | None]]]:
    for line in text.strip().splitlines():
        pid, user, cgroup = [*line.split("\t"), "", ""][:3]
        found = _CONTAINER.search(cgroup)
        yield int(pid), (user or None, found[1] if found else None)


def _health(
    index: int, gpu: ElementTree.Element, owners: Mapping[int, tuple[str | None, str | None]]
) -> GpuHealth:
    recovery = _text(gpu, "gpu_recovery_action")
    fabric = _text(gpu, "fabric/state")
    return GpuHealth(
        index=index,
        uuid=_text(gpu, "uuid") or "",
        bus_id=gpu.get("id", ""),
        persistence=_switched(gpu, "persistence_mode", "Enabled"),
        mig=_switched(gpu, "mig_mode/current_mig", "Enabled"),
        uncorrected_errors=_uncorrected(gpu),
        remap_pending=_switched(gpu, "remapped_rows/remapped_row_pending", "Yes"),
        remap_failed=_switched(gpu, "remapped_rows/remapped_row_failure", "Yes"),
        pcie_width=_number(gpu, "pci/pci_gpu_link_info/link_widths/current_link_width"),
        pcie_width_max=_number(gpu, "pci/pci_gpu_link_info/link_widths/max_link_width"),
        slowed=tuple(_slowdowns(gpu)),
        fabric=fabric,
        recovery=None if recovery == "None" else recovery,
        processes=tuple(_processes(gpu, owners)),
    )


def _text(gpu: ElementTree.Element, path: str) -> str | None:
    said = (gpu.findtext(path) or "").strip()
    return None if said in ("", "N/A", "[N/A]", "ERR!", "Unknown Error") else said


def _number(gpu: ElementTree.Element, path: str) -> int | None:
    digits = re.match(r"\d+", _text(gpu, path) or "")
    return int(digits[0]) if digits else None


def _switched(gpu: ElementTree.Element, path: str, on: str) -> bool | None:
    said = _text(gpu, path)
    return None if said is None else said == on


def _uncorrected(gpu: ElementTree.Element) -> int | None:
    """SRAM's and DRAM's, under the names of all generations; None without ECC."""
    volatile = gpu.find("ecc_errors/volatile")
    names = [e.tag for e in volatile if "uncorrectable" in e.tag] if volatile is not None else []
    counts = [_number(gpu, f"ecc_errors/volatile/{name}") for name in names]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _slowdowns(gpu: ElementTree.Element) -> Iterator[str]:
    for element in gpu.iter():
        match = _SLOWDOWNS.match(element.tag)
        if match and (element.text or "").strip() == "Active":
            yield match[1].replace("_", " ").replace("hw", "hardware", 1)


def _processes(
    gpu: ElementTree.Element, owners: Mapping[int, tuple[str | None, str | None]]
) -> Iterator[GpuProcess]:
    for process in gpu.iterfind("processes/process_info"):
        pid = _number(process, "pid") or 0
        user, container = owners.get(pid, (None, None))
        name = (process.findtext("process_name") or "").strip()
        yield GpuProcess(pid, name, _number(process, "used_memory"), user, container)


# --- nvidia-smi nvlink -s, topo -m ---------------------------------------------------------------


def parse_nvlink(text: str) -> tuple[NvLinks, ...]:
    """`nvidia-smi nvlink -s`. A GPU without NVLink has no lines of links and is left out."""
    found: dict[int, list[bool]] = {}
    for line in text.splitlines():
        if gpu := re.match(r"GPU (\d+):", line):
            found[int(gpu[1])] = []
        elif found and re.match(r"\s+Link \d+:", line):
            found[max(found)].append("inactive" not in line)
    return tuple(NvLinks(i, sum(up), len(up) - sum(up)) for i, up in found.items() if up)


def parse_topo(text: str) -> tuple[tuple[GpuPath, ...], tuple[tuple[int, str], ...]]:
    """`nvidia-smi topo -m`: each pair of devices once, and each GPU's NUMA node."""
    plain = re.sub(r"\x1b\[\d*m", "", text)
    lines = [line for line in plain.partition("Legend")[0].splitlines() if line.strip()]
    if not lines:
        return (), ()
    names = re.findall(r"\b(?:GPU|NIC)\d+\b", lines[0])
    rows = [_topo_row(line, len(names)) for line in lines[1:]]
    paths = [path for name, cells, _ in rows for path in _paths(name, cells, names)]
    numa = [(int(name[3:]), node) for name, _, node in rows if name.startswith("GPU") and node]
    return tuple(paths), tuple(numa)


def _topo_row(line: str, width: int) -> tuple[str, list[str], str | None]:
    """Its name, its cells, its NUMA node. Behind the cells: CPUs, NUMA node, GPU's own node."""
    words = line.split()
    behind = words[1 + width :]
    return words[0], words[1 : 1 + width], behind[1] if len(behind) > 1 else None


def _paths(name: str, cells: Sequence[str], names: Sequence[str]) -> Iterator[GpuPath]:
    """The upper triangle."""
    for other, kind in zip(names, cells, strict=False):
        if kind == "X":
            return
        yield GpuPath(other, name, kind)


# --- the rest ------------------------------------------------------------------------------------


def parse_services(section: Section) -> tuple[tuple[str, str], ...]:
    """() where there is no systemd to ask."""
    rows = [line.split() for line in section.stdout.splitlines()]
    return tuple((row[0], row[1]) for row in rows if len(row) == 2)


def parse_toolkit(section: Section) -> str | None:
    match = re.search(r"version (\d[\w.]*)", section.stdout)
    return match[1] if match else None


def with_container_names(facts: NvidiaFacts, names: Mapping[str, str]) -> NvidiaFacts:
    """`names`: container id -> its name, which says more than the id."""
    if facts.health is None:
        return facts
    return replace(facts, health=tuple(_named(gpu, names) for gpu in facts.health))


def _named(gpu: GpuHealth, names: Mapping[str, str]) -> GpuHealth:
    processes = (
        replace(p, container=names.get(p.container or "", p.container)) for p in gpu.processes
    )
    return replace(gpu, processes=tuple(processes))
