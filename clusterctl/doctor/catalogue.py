"""What goes wrong with distributed serving and could be seen before anything is started, and which
check sees it. Data for docs/doctor.md; a test holds the check ids against the checks there are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """`what`: as people meet it. `checks`: ids of those that see it before. `otherwise`: why none
    does, or who sees to it instead."""

    what: str
    checks: tuple[str, ...] = ()
    otherwise: str = ""


CATALOGUE: tuple[Failure, ...] = (
    Failure("Docker cannot hand a GPU to a container", ("docker.gpu-runtime",)),
    Failure(
        "The driver is older than the CUDA in the image",
        ("image.cuda",),
        "`up` refuses it, too",
    ),
    Failure(
        "CUDA compatibility libraries and a newer driver get in each other's way (error 803)",
        ("image.compat",),
    ),
    Failure(
        "Kernel module and user libraries of the driver differ",
        ("gpu.driver", "gpu.driver-on-disk"),
    ),
    Failure(
        "A running container loses its GPUs after systemd reloads",
        ("collective.whole",),
        "in a container that runs, by `--deep`",
    ),
    Failure("CUDA does not start: the Fabric Manager is not ready (error 802)", ("gpu.fabric",)),
    Failure("Docker's disk is full in the middle of a pull", ("docker.disk",)),
    Failure("Ray cannot make objects: the disk of /tmp is full", ("host.disk",)),
    Failure("A mounted cache cannot be read, though its modes allow it", ("host.selinux",)),
    Failure(
        "A container or a port of an earlier run is in the way",
        ("docker.stale", "docker.name", "ray.ports"),
    ),
    Failure("The hosts do not have the same GPUs", ("gpu.count", "gpu.alike")),
    Failure("The hosts' drivers differ", ("gpu.driver-equal",)),
    Failure("A GPU shows errors, or fell off the bus", ("gpu.driver", "gpu.recovery", "gpu.xid")),
    Failure("Uncorrectable memory errors", ("gpu.ecc", "gpu.remap")),
    Failure("The kernel logged an Xid", ("gpu.xid",)),
    Failure("NVLink is down, or not there", ("gpu.nvlink", "gpu.paths")),
    Failure("Another process holds GPU memory", ("gpu.memory-held",)),
    Failure("A library that shares GPUs stands in between", ("host.preload",)),
    Failure("Clocks differ", ("host.clock",)),
    Failure(
        "Limits on open files or the stack are low",
        ("host.open-files",),
        "`up` sets the stack's limit of containers that use RDMA",
    ),
    Failure(
        "On unified memory the page cache takes what the engine needs",
        ("gpu.unified-memory",),
    ),
    Failure("Ray is not in the image", ("image.contents",)),
    Failure(
        "Ray or Python differ between nodes",
        ("image.equal", "image.versions"),
    ),
    Failure(
        "Ray and the engine call a node by different addresses",
        ("net.env-address",),
        "`up` gives every node one address for both and reads it back",
    ),
    Failure(
        "Ray knows no node of the address that the engine asks for",
        ("net.env-address",),
        "as above",
    ),
    Failure(
        "Several nodes call themselves by one address",
        ("net.env-address", "net.duplicate-address", "net.address-taken", "host.distinct"),
    ),
    Failure("The head gives no GPU", ("gpu.count",)),
    Failure(
        "More ranks than one node has GPUs, and no executor was named",
        otherwise="`serve` always names the executor",
    ),
    Failure(
        "Ray asks for a token that a node does not have",
        ("ray.token",),
        "`up` gives every node the same one",
    ),
    Failure("Ray's object store falls back to /tmp", ("host.shm",)),
    Failure(
        "Ray registers fewer GPUs than there are",
        ("ray.formed",),
        "`up` holds the devices of every node against the plan (Formation)",
    ),
    Failure("The host's own name leads to 127.0.1.1", ("net.hostname-loopback",)),
    Failure("NCCL's shared memory does not fit into /dev/shm", ("host.shm",)),
    Failure(
        "RDMA may not lock memory",
        otherwise="`up` starts nodes with RDMA with IPC_LOCK and an unlimited memlock",
    ),
    Failure(
        "The container sees no RDMA device, and NCCL uses TCP",
        ("rdma.ports", "rdma.hca", "net.env-leftover"),
        "`up` passes /dev/infiniband where the host has devices",
    ),
    Failure(
        "Large messages hang: MTUs differ", ("net.mtu-equal", "rdma.mtu-equal", "net.path-mtu")
    ),
    Failure(
        "EFA falls back to TCP without a word",
        ("collective.transport",),
        "NCCL's own log says it, with the cluster up (`--deep`); written after published logs",
    ),
    Failure(
        "One host hangs after the start: PCIe sends peer traffic through the root", ("gpu.acs",)
    ),
    Failure("Some ranks see fewer network cards", ("rdma.alike",)),
    Failure(
        "The model is missing, or another one, on some host",
        ("model.present", "model.equal", "model.complete", "host.directories"),
    ),
    Failure("The Hub refuses the download", ("model.token",)),
    Failure(
        "Attention heads cannot be split so",
        ("model.split",),
        "with `--model`, `--tp` and `--pp`; `serve` and `plan` ask the same",
    ),
    Failure("A quantised block cannot be split so", ("model.split",), "as above"),
    Failure(
        "The architecture cannot be cut into stages",
        otherwise="our engine cuts every architecture it has; which ones vLLM cuts, its version "
        "alone knows: the log of the start names it",
    ),
)
