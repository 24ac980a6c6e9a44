"""Where a rank stands among its peers: built once, passed in, never looked up in a global."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Communicator(Protocol):
    """One group of ranks that exchange tensors. Carriers: nothing (size 1), torch.distributed
    (gloo, NCCL, gloo for GPUs), threads of one process."""

    rank: int
    size: int
    capturable: bool  # whether a CUDA graph can hold its collectives

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the group, same shape."""
        ...

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """Concatenate every rank's tensor along `dim`, in rank order."""
        ...

    def send(self, tensor: torch.Tensor, to: int) -> None: ...

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, source: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class ParallelContext:
    """Rank = pp_rank * tp.size + tp_rank. `tp` joins the ranks of one stage, `pp` the ranks that
    hold the same shard in every stage. `sharers`: how many of the ranks compute on this device."""

    tp: Communicator
    pp: Communicator
    device: torch.device
    sharers: int = 1

    @property
    def rank(self) -> int:
        return self.pp.rank * self.tp.size + self.tp.rank

    @property
    def is_first_stage(self) -> bool:
        return self.pp.rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp.rank == self.pp.size - 1
