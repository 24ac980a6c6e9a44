"""GPUs by name: memory, bandwidth, arithmetic, and whether they are linked among themselves.

Memory is what torch reports (`total_memory`), in GiB; what startup logs of vLLM or torch show
where one was found, else the nominal size less what drivers keep of cards of that kind.
Bandwidth (GB/s) and dense tera-operations a second are the vendors' datasheets.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

from clusterctl.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """`linked`: a direct link between all GPUs of a node (NVLink, NVSwitch, Infinity Fabric).
    `unified`: its memory is the host's. `cpu`: it is no GPU but a slot of a host's CPUs."""

    name: str
    memory_gib: float
    bandwidth: float
    tflops: float
    tflops_fp8: float
    linked: bool = False
    unified: bool = False
    cpu: bool = False

    @property
    def is_a100(self) -> bool:
        """Which engines do not count among the large ones, whatever its memory."""
        return self.name.startswith(("A100", "A800"))

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * GIB)


@dataclass(frozen=True)
class NodeGroup:
    """`nodes` equal machines with `per_node` equal GPUs each."""

    nodes: int
    per_node: int
    gpu: Gpu

    def __str__(self) -> str:
        return f"{self.nodes}x{self.per_node}x{self.gpu.name}"


@dataclass(frozen=True)
class Hardware:
    """The nodes of a cluster, in their order: one group where all are alike."""

    groups: tuple[NodeGroup, ...]

    @classmethod
    def alike(cls, nodes: int, per_node: int, gpu: Gpu) -> Hardware:
        return cls((NodeGroup(nodes, per_node, gpu),))

    @property
    def nodes(self) -> int:
        return sum(group.nodes for group in self.groups)

    @property
    def per_node(self) -> int:
        """Of the node that has most."""
        return max(group.per_node for group in self.groups)

    @property
    def total(self) -> int:
        return sum(group.nodes * group.per_node for group in self.groups)

    @property
    def gpu(self) -> Gpu:
        """The smallest one: what is planned for it runs on all."""
        gpus = [group.gpu for group in self.groups]
        return min(gpus, key=lambda gpu: (gpu.memory_gib, gpu.bandwidth))

    @property
    def linked(self) -> bool:
        return all(group.gpu.linked for group in self.groups)

    @property
    def unlike(self) -> bool:
        return len({group.gpu for group in self.groups}) > 1

    def slots(self, tp: int) -> list[list[Gpu]]:
        """Where a stage of `tp` ranks can lie: one entry a node, or, where tp spans nodes, one a
        set of equal nodes."""
        if tp > self.per_node:
            spanning = [one for one in self.groups if tp % one.per_node == 0]
            return [[g.gpu] * (g.nodes * g.per_node // tp) for g in spanning]
        return [[g.gpu] * (g.per_node // tp) for g in self.groups for _ in range(g.nodes)]

    def with_more(self, nodes: int) -> Hardware:
        """`nodes` more of the first kind."""
        first, *rest = self.groups
        return Hardware((replace(first, nodes=first.nodes + nodes), *rest))

    def __str__(self) -> str:
        return ",".join(map(str, self.groups))


_TABLE: tuple[Gpu, ...] = (
    Gpu("H100-80G", 79.11, 3350, 989, 1979, linked=True),
    Gpu("H100-PCIE", 79.11, 2039, 756, 1513),
    Gpu("H100-94G", 93.11, 3938, 835, 1671, linked=True),
    Gpu("H800", 79.11, 3350, 989, 1979, linked=True),
    Gpu("H200", 139.81, 4800, 989, 1979, linked=True),
    Gpu("H20", 95.22, 4000, 148, 296, linked=True),
    Gpu("H20-141G", 139.81, 4800, 148, 296, linked=True),
    Gpu("GH200", 94.5, 4000, 989, 1979, linked=True),
    Gpu("B200", 178.35, 8000, 2250, 4500, linked=True),
    Gpu("B300", 267.69, 8000, 2250, 4500, linked=True),
    Gpu("GB200", 184.3, 8000, 2500, 5000, linked=True),
    Gpu("GB300", 277.0, 8000, 2500, 5000, linked=True),
    Gpu("A100-80G", 79.15, 2039, 312, 312, linked=True),
    Gpu("A100-40G", 39.39, 1555, 312, 312, linked=True),
    Gpu("A800", 79.15, 2039, 312, 312, linked=True),
    Gpu("A10", 22.06, 600, 125, 125),
    Gpu("A10G", 22.06, 600, 70, 70),
    Gpu("A16", 14.6, 200, 18, 18),
    Gpu("A30", 23.5, 933, 165, 165),
    Gpu("A40", 44.35, 696, 150, 150),
    Gpu("RTXA6000", 47.43, 768, 155, 155),
    Gpu("RTXA5000", 23.57, 768, 111, 111),
    Gpu("RTX8000", 47.27, 672, 130, 130),
    Gpu("TITANRTX", 23.65, 672, 130, 130),
    Gpu("RTX5000ADA", 31.48, 576, 261, 522),
    Gpu("RTXA4000", 15.73, 448, 77, 77),
    Gpu("L4", 21.96, 300, 121, 242),
    Gpu("L20", 44.4, 864, 119, 239),
    Gpu("L40", 44.39, 864, 181, 362),
    Gpu("L40S", 44.39, 864, 362, 733),
    Gpu("T4", 14.58, 320, 65, 65),
    Gpu("V100-16G", 15.77, 900, 125, 125, linked=True),
    Gpu("V100-32G", 31.73, 900, 125, 125, linked=True),
    Gpu("P100-16G", 15.89, 732, 19, 19),
    Gpu("RTX3060", 11.76, 360, 51, 51),
    Gpu("RTX3080", 9.77, 760, 119, 119),
    Gpu("RTX3090", 23.58, 936, 71, 71),
    Gpu("RTX4060", 7.99, 272, 60, 121),
    Gpu("RTX4060TI-16G", 15.6, 288, 88, 177),
    Gpu("RTX4070", 11.6, 504, 117, 233),
    Gpu("RTX4080", 15.7, 717, 195, 390),
    Gpu("RTX4090", 23.53, 1008, 165, 330),
    Gpu("RTX5070TI", 15.5, 896, 176, 352),
    Gpu("RTX5080", 15.5, 960, 225, 450),
    Gpu("RTX5090", 31.36, 1792, 209, 419),
    Gpu("RTX6000ADA", 47.4, 960, 364, 728),
    Gpu("RTXPRO6000", 94.97, 1792, 504, 1008),
    Gpu("GB10", 121.63, 273, 62, 125, unified=True),
    Gpu("MI100", 31.98, 1229, 184, 184),
    Gpu("MI210", 63.98, 1638, 181, 181),
    Gpu("MI250X", 63.98, 1638, 191, 191, linked=True),  # one of its two dies: a device of its own
    Gpu("MI300A", 127.5, 5300, 981, 1961, linked=True, unified=True),
    Gpu("MI300X", 191.98, 5300, 1307, 2615, linked=True),
    Gpu("MI308X", 191.98, 5300, 210, 420, linked=True),
    Gpu("MI325X", 255.98, 6000, 1307, 2615, linked=True),
    Gpu("MI350X", 287.98, 8000, 2300, 4600, linked=True),
    Gpu("MI355X", 287.98, 8000, 2500, 5000, linked=True),
)

# What people write, without NVIDIA, AMD, Tesla, spaces and dashes -> the table's name.
_ALIASES = {
    "H100": "H100-80G",
    "H100SXM": "H100-80G",
    "H100SXM5": "H100-80G",
    "H100HBM3": "H100-80G",
    "H100NVL": "H100-94G",
    "H100PCIE": "H100-PCIE",
    "H200SXM": "H200",
    "H200NVL": "H200",
    "H20-96G": "H20",
    "H20-3E": "H20-141G",
    "GH200-480G": "GH200",  # the size of its CPU's memory
    "B300-AC": "B300",
    "RTX3090TI": "RTX3090",
    "RTX4090-D": "RTX4090",
    "A100": "A100-80G",
    "A100SXM4": "A100-80G",
    "A100PCIE": "A100-80G",
    "V100": "V100-16G",
    "P100": "P100-16G",
    "A6000": "RTXA6000",
    "A5000": "RTXA5000",
    "A4000": "RTXA4000",
    "3090": "RTX3090",
    "4090": "RTX4090",
    "5090": "RTX5090",
    "6000ADA": "RTX6000ADA",
    "PRO6000": "RTXPRO6000",
    "RTXPRO6000BLACKWELL": "RTXPRO6000",
    "DGXSPARK": "GB10",
    "SPARK": "GB10",
    "MI250": "MI250X",
    "MI300": "MI300X",
    "MI325": "MI325X",
    "MI355": "MI355X",
}

_NAMES = {gpu.name: gpu for gpu in _TABLE}
_NOISE = re.compile(r"NVIDIA|AMD|TESLA|INSTINCT|GEFORCE|QUADRO|GENERATION")
_MEMORY = re.compile(r"^(.*?)-?(\d+(?:\.\d+)?)G(?:I?B)?$")
_HARDWARE = re.compile(
    r"^(?:(?:(\d+)\s*[x×*]\s*)?(\d+)\s*[x×*]\s*)?(\D.*|\d{4}\D*)$", re.IGNORECASE
)
_NOMINAL_TOLERANCE = 0.12


def parse_hardware(text: str) -> Hardware:
    """`2x8xH100-80G`, `8xH200`, `RTX4090`, `1x8xH100,1x8xA100`. Raises ConfigError naming the
    nearest GPU."""
    return Hardware(tuple(_parse_group(one) for one in text.split(",")))


def _parse_group(text: str) -> NodeGroup:
    match = _HARDWARE.match(text.strip())
    if match is None or "0" in (match[1], match[2]):
        raise ConfigError(
            f"--gpus {text!r} cannot be read", hint="NODESxGPUSxNAME, for example 2x8xH100-80G"
        )
    nodes, per_node = int(match[1] or 1), int(match[2] or 1)
    return NodeGroup(nodes, per_node, find_gpu(match[3]))


def find_gpu(text: str) -> Gpu:
    """A GPU by the name people, datasheets and nvidia-smi give it. Raises ConfigError."""
    name = _tidy(text)
    if found := _lookup(name):
        return found
    sized = _MEMORY.match(name)
    if sized and (base := _lookup(sized[1])):
        return _with_memory(base, float(sized[2]))
    close = difflib.get_close_matches(name, [*_NAMES, *_ALIASES], n=1, cutoff=0.3)
    nearest = _ALIASES.get(close[0], close[0]) if close else "H100-80G"
    raise ConfigError(
        f"GPU {text!r} is not known (nearest: {nearest})",
        hint=f"known: {', '.join(_NAMES)}",
    )


def known(text: str) -> Gpu | None:
    """As find_gpu, for a name that a host reported: None where it is not in the table."""
    try:
        return find_gpu(text)
    except ConfigError:
        return None


def _tidy(text: str) -> str:
    """ "NVIDIA H100 80GB HBM3" -> H100-80G."""
    name = _NOISE.sub("", text.upper())
    name = re.sub(r"\b(HBM\d\w?|SXM\d?|WORKSTATION|SERVER|MAX-Q|EDITION|BLACKWELL|OAM)\b", "", name)
    name = re.sub(r"(\d)\s*GI?B\b", r"\1G", name)
    name = re.sub(r"[\s_]+", "-", name.strip()).strip("-")
    name = re.sub(r"-+", "-", name)
    name = re.sub(r"(?<!H100)-PCIE", "", name)  # of others the memory tells the kind
    return re.sub(r"^(RTX|GTX)-", r"\1", name)


def _lookup(name: str) -> Gpu | None:
    flat = name.replace("-", "")
    for key in (name, flat):
        found = _NAMES.get(_ALIASES.get(key, key))
        if found:
            return found
    return next((gpu for gpu in _TABLE if gpu.name.replace("-", "") == flat), None)


def _with_memory(base: Gpu, nominal: float) -> Gpu:
    """The size that was written: that of the card's own kind, of its sibling, or as it is."""
    stem = base.name.partition("-")[0]
    for gpu in (base, *(one for one in _TABLE if one.name.startswith(f"{stem}-"))):
        if abs(nominal - gpu.memory_gib) <= _NOMINAL_TOLERANCE * gpu.memory_gib:
            return gpu
    return replace(base, name=f"{base.name}-{nominal:g}G", memory_gib=nominal * 0.985)
