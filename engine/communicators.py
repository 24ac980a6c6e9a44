"""The carriers of engine.parallel.Communicator: none, torch.distributed, threads."""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from engine.parallel import Communicator, ParallelContext

logger = logging.getLogger(__name__)


class PeerFailed(RuntimeError):
    """Another rank of this in-process world failed; this one was waiting for it."""


class Solo:
    """A group of one: nothing to exchange."""

    rank = 0
    size = 1
    capturable = True

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return tensor

    def send(self, tensor: torch.Tensor, to: int) -> None:
        raise ValueError(f"a group of one has no rank {to} to send to")

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, source: int) -> torch.Tensor:
        raise ValueError(f"a group of one has no rank {source} to receive from")


class TorchGroup:
    """A torch.distributed process group. `ranks` are the members' global ranks, in order."""

    def __init__(
        self, group: dist.ProcessGroup, ranks: tuple[int, ...], rank: int, device: torch.device
    ) -> None:
        self.rank = rank
        self.size = len(ranks)
        self.capturable = device.type == "cuda"
        self._group = group
        self._ranks = ranks
        self._device = device

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor, group=self._group)
        return tensor

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        parts = tensor.new_empty(self.size, *tensor.shape)
        joined = parts.flatten(0, 1)  # gloo knows no other form
        dist.all_gather_into_tensor(joined, tensor.contiguous(), group=self._group)
        return torch.cat(parts.unbind(), dim)

    def send(self, tensor: torch.Tensor, to: int) -> None:
        dist.send(tensor.contiguous(), dst=self._ranks[to], group=self._group)

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, source: int) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=self._device)
        dist.recv(tensor, src=self._ranks[source], group=self._group)
        return tensor


class HostStaged:
    """Ranks that share a GPU, which NCCL refuses: what they exchange goes through the host, over
    `group`, which is the CPU's."""

    capturable = False

    def __init__(self, group: TorchGroup, device: torch.device) -> None:
        self.rank = group.rank
        self.size = group.size
        self._group = group
        self._device = device

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(self._group.all_reduce(tensor.cpu()))

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return self._group.all_gather(tensor.cpu(), dim).to(self._device)

    def send(self, tensor: torch.Tensor, to: int) -> None:
        self._group.send(tensor.cpu(), to)

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, source: int) -> torch.Tensor:
        return self._group.receive(shape, dtype, source).to(self._device)


def build_torch_parallel(
    rank: int,
    tp: int,
    pp: int,
    master_addr: str,
    master_port: int,
    device: torch.device,
    timeout_s: float = 300.0,
) -> ParallelContext:
    """Join the other ranks: NCCL for CUDA devices, gloo for the CPU and where ranks share a GPU.

    Blocks until all tp x pp ranks have come or `timeout_s` is over (torch raises then).
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if tp * pp == 1:
        return ParallelContext(tp=Solo(), pp=Solo(), device=device)
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(master_addr, master_port, tp * pp, rank == 0, timeout)
    sharers = 1
    if device.type == "cuda":
        sharers = _most_sharers(store, rank, tp * pp, device)
    if sharers > 1 and rank == 0:
        logger.warning("%d ranks share a GPU: they exchange tensors through the host", sharers)
    nccl = device.type == "cuda" and sharers == 1
    dist.init_process_group(
        "nccl" if nccl else "gloo", store=store, rank=rank, world_size=tp * pp, timeout=timeout
    )
    stages = [tuple(range(stage * tp, (stage + 1) * tp)) for stage in range(pp)]
    columns = [tuple(range(column, tp * pp, tp)) for column in range(tp)]
    return ParallelContext(
        tp=_join(stages, rank, device, nccl),
        pp=_join(columns, rank, device, nccl),
        device=device,
        sharers=sharers,
    )


def _most_sharers(store: TCPStore, rank: int, world_size: int, device: torch.device) -> int:
    """How many ranks the most crowded device has: all ranks must come to the same answer."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    store.set(f"device of rank {rank}", uuid)
    devices = Counter(store.get(f"device of rank {one}") for one in range(world_size))
    return max(devices.values())


def close_torch_parallel() -> None:
    """Leave the groups that build_torch_parallel joined, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(
    groups: list[tuple[int, ...]], rank: int, device: torch.device, nccl: bool
) -> Communicator:
    """torch wants every rank to make every group, in the same order."""
    mine: Communicator = Solo()
    for ranks in groups:
        if len(ranks) == 1:
            continue
        group = dist.new_group(list(ranks))
        if rank in ranks:
            own = device if nccl else torch.device("cpu")
            mine = TorchGroup(group, ranks, ranks.index(rank), own)
    if isinstance(mine, TorchGroup) and device.type == "cuda" and not nccl:
        return HostStaged(mine, device)
    return mine


class _Exchange:
    """What the threads of one group share: a slot a rank, and a mailbox for each direction."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.slots: list[torch.Tensor | None] = [None] * size
        self.mail: dict[tuple[int, int], queue.SimpleQueue[torch.Tensor | None]] = {
            (source, to): queue.SimpleQueue() for source in range(size) for to in range(size)
        }

    def abort(self) -> None:
        """Wake every rank that waits, now or later, with PeerFailed."""
        self.barrier.abort()
        for box in self.mail.values():
            box.put(None)


class ThreadGroup:
    """Ranks that are threads of one process. Tensors are handed over, not copied through pipes."""

    capturable = False

    def __init__(self, exchange: _Exchange, rank: int) -> None:
        self.rank = rank
        self.size = len(exchange.slots)
        self._exchange = exchange

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        # Every rank adds in rank order: all hold bit-identical sums.
        return torch.stack(self._swap(tensor)).sum(0)

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat(self._swap(tensor), dim)

    def send(self, tensor: torch.Tensor, to: int) -> None:
        self._exchange.mail[self.rank, to].put(tensor.clone())

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, source: int) -> torch.Tensor:
        box = self._exchange.mail[source, self.rank]
        tensor = box.get()
        if tensor is None:
            box.put(None)  # the world stays failed for whoever asks next
            raise PeerFailed(f"rank {source} of the group failed")
        assert (tensor.shape, tensor.dtype) == (shape, dtype)
        return tensor

    def _swap(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor. They are copies: a rank may overwrite its own as soon as it
        returns, while a slower one still adds."""
        exchange = self._exchange
        exchange.slots[self.rank] = tensor.clone()
        self._wait()
        parts = [part for part in exchange.slots if part is not None]
        self._wait()  # nobody may fill its slot again before all have read
        return parts

    def _wait(self) -> None:
        try:
            self._exchange.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise PeerFailed("another rank of the group failed") from error


@dataclass(frozen=True)
class ThreadWorld:
    """tp x pp ranks of one process: `contexts[rank]` belongs to that rank's thread."""

    contexts: tuple[ParallelContext, ...]
    exchanges: tuple[_Exchange, ...]

    def abort(self) -> None:
        """Call it when a rank raised: every other one then raises PeerFailed instead of waiting."""
        for exchange in self.exchanges:
            exchange.abort()


def thread_world(tp: int, pp: int, device: torch.device) -> ThreadWorld:
    """The contexts of tp x pp threads that share one device."""
    stages = [_Exchange(tp) for _ in range(pp)]
    columns = [_Exchange(pp) for _ in range(tp)]
    contexts = tuple(
        ParallelContext(
            tp=_thread_group(stages[rank // tp], rank % tp),
            pp=_thread_group(columns[rank % tp], rank // tp),
            device=device,
            sharers=tp * pp,
        )
        for rank in range(tp * pp)
    )
    return ThreadWorld(contexts=contexts, exchanges=(*stages, *columns))


def _thread_group(exchange: _Exchange, rank: int) -> Communicator:
    return Solo() if len(exchange.slots) == 1 else ThreadGroup(exchange, rank)


def current(device: torch.device) -> AbstractContextManager[object]:
    """For this thread: kernels are launched on the current GPU, wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def rank_device(name: str, local_rank: int, replicas: int = 1) -> torch.device:
    """The device of a rank: `name` is "auto", "cpu" or "cuda"; `local_rank` counts on its host.
    More ranks than GPUs share them; with several `replicas` raises ValueError then, since none
    counts what the others take."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if replicas > 1 and local_rank >= gpus:
        raise ValueError(
            f"local rank {local_rank} has no GPU: torch sees {gpus}, and {replicas} replicas share "
            f"none: lower data_parallel_size"
        )
    return torch.device("cuda", local_rank % max(gpus, 1))
