"""nvidia-smi and the kernel's compute topology, in their good and their bad moods."""

from __future__ import annotations

from clusterctl.facts.gpu import cuda_version, module_version, parse_kfd, parse_nvidia
from clusterctl.facts.sections import Section
from clusterctl.facts.types import Gpu, GpuFacts

NOTHING = Section(exit_code=127)
BANNER = Section(
    "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4 |\n", "", 0
)
MODULE = Section(
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n",
    "",
    0,
)
ABSENT = Section("", "cat: /proc/driver/nvidia/version: No such file or directory", 1)


def nvidia(
    query: Section, *, banner: Section = BANNER, module: Section = MODULE, on_pci: int = 0
) -> GpuFacts:
    return parse_nvidia(query=query, banner=banner, module=module, on_pci=on_pci)


def test_several_gpus() -> None:
    text = (
        "0, NVIDIA A100-SXM4-80GB, GPU-a, 81920, 4, 550.54.15\n"
        "1, NVIDIA A100-SXM4-80GB, GPU-b, 81920, 79000, 550.54.15\n"
    )
    assert nvidia(Section(text, "", 0)) == GpuFacts(
        gpus=(
            Gpu(0, "nvidia", "NVIDIA A100-SXM4-80GB", "GPU-a", 81920, 4),
            Gpu(1, "nvidia", "NVIDIA A100-SXM4-80GB", "GPU-b", 81920, 79000),
        ),
        driver="550.54.15",
        cuda="12.4",
    )


def test_memory_that_is_not_told_is_unknown() -> None:
    """A GB10 shares the host's memory and says [N/A]; a broken counter says ERR!."""
    text = """\
0, NVIDIA GB10, GPU-a, [N/A], [N/A], 580.95.05
1, X, GPU-b, ERR!, [Unknown Error], 580.95.05
"""
    facts = nvidia(Section(text, "", 0))
    assert [(g.memory_mib, g.memory_used_mib) for g in facts.gpus] == [(None, None), (None, None)]
    assert facts.error is None


def test_a_gpu_that_fell_off_the_bus_is_named_beside_those_that_work() -> None:
    lost = "Unable to determine the device handle for GPU0000:41:00.0: Unknown Error"
    facts = nvidia(Section(f"0, NVIDIA L4, GPU-a, 23034, 1, 550.54.15\n{lost}\n", "", 0))
    assert len(facts.gpus) == 1
    assert facts.error == f"nvidia-smi: {lost}"


def test_driver_and_library_differ() -> None:
    text = (
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.54\n"
    )
    assert nvidia(Section(text, "", 18)) == GpuFacts(
        driver="535.104.05",
        error="nvidia-smi: Failed to initialize NVML: Driver/library version mismatch NVML library "
        "version: 550.54",
    )


def test_driver_without_a_gpu() -> None:
    assert nvidia(Section("No devices were found\n", "", 6)) == GpuFacts(
        driver="535.104.05", error="nvidia-smi: No devices were found"
    )


def test_tool_without_its_driver() -> None:
    text = (
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure "
        "that the latest NVIDIA driver is installed and running.\n"
    )
    facts = nvidia(Section(text, "", 9), module=ABSENT)
    assert (facts.driver, facts.gpus) == (None, ())
    assert facts.error is not None
    assert facts.error.startswith("nvidia-smi: NVIDIA-SMI has failed")


def test_a_driver_that_hangs() -> None:
    assert nvidia(Section("", "", 124)).error == "nvidia-smi: no answer within 15 s"


def test_driver_without_its_tool() -> None:
    assert nvidia(NOTHING, banner=NOTHING).error == (
        "the NVIDIA kernel module 535.104.05 is loaded, but there is no nvidia-smi"
    )


def test_gpus_without_a_driver() -> None:
    assert nvidia(NOTHING, banner=NOTHING, module=ABSENT, on_pci=8) == GpuFacts(
        error="8 NVIDIA GPU(s) on the PCI bus, but no driver"
    )


def test_nothing_of_nvidia() -> None:
    assert nvidia(NOTHING, banner=NOTHING, module=ABSENT) == GpuFacts()


def test_versions() -> None:
    open_module = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build\n"
    )
    assert module_version(open_module) == "580.95.05"
    assert module_version("") is None
    assert cuda_version("| CUDA Version: N/A |") is None
    assert cuda_version("CUDA Version        : 13.0") == "13.0"


def test_amd_from_the_compute_topology() -> None:
    text = "90402\tAMD Instinct MI300X\tabc123\t206141652992\t294912\n90010\t\t\t68702699520\t\n"
    assert parse_kfd(text) == (
        Gpu(0, "amd", "AMD Instinct MI300X", "abc123", 196592, 0),
        Gpu(1, "amd", "AMD gfx90a", "", 65520, None),
    )
    assert parse_kfd("90402\t\t\t\t\n")[0].name == "AMD gfx942"
    assert parse_kfd("") == ()
