"""How the engine's log lines look: on stderr, one line an event, the rank named where it is one."""

from __future__ import annotations

import logging


def configure(rank: int | None = None) -> None:
    """Set up logging for a process that belongs to the engine. `rank` None: the driver."""
    who = "" if rank is None else f"[rank {rank}] "
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(levelname)s %(asctime)s {who}%(message)s",
        datefmt="%m-%d %H:%M:%S",
        force=True,
    )
