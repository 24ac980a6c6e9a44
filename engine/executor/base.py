"""One verb and its carriers: call a method on the Runner of every rank, now or ahead."""

from __future__ import annotations

from typing import Any, Protocol

# What a rank runs, as "module:class": named, not passed, so that a driver whose ranks are other
# processes need not import torch.
RUNNER = "engine.runner:Runner"


class RankFailed(RuntimeError):
    """A rank died, hung past its deadline or raised. `rank` names it; the executor is then dead."""

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(f"rank {rank}: {message}")
        self.rank = rank


class Answers(Protocol):
    """What all ranks answer to one call."""

    def result(self, timeout: float | None = None) -> list[Any]:
        """The results in rank order; a step.Deferred is waited for.

        Raises RankFailed for the first rank that died, raised, or did not answer in `timeout`
        seconds. After that the executor is dead and every call raises the same.
        """
        ...


class Executor(Protocol):
    """world_size ranks, each holding one engine.runner.Runner. Rank = pp_rank * tp + tp_rank."""

    world_size: int
    devices: tuple[str, ...]  # of each rank, as torch names them: "cpu", "cuda:0"

    def submit(self, method: str, *args: Any) -> Answers:
        """Call `method(*args)` on every rank and do not wait. Every rank obeys in the order of
        the calls, and the results must be asked for in that order. Raises RankFailed."""
        ...

    def collective(self, method: str, *args: Any, timeout: float | None = None) -> list[Any]:
        """`submit`, and the `result` of it."""
        ...

    def check_health(self) -> None:
        """Raises RankFailed when a rank is known to be dead. Does not wait."""
        ...

    def shutdown(self) -> None:
        """End every rank. Idempotent; leaves no process behind."""
        ...
