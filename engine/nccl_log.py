"""What NCCL's own log (NCCL_DEBUG=INFO) says about how ranks reach each other. PURE.

Its lines are made in NCCL's src/transport/{net,p2p,shm,coll_net}.cc and src/transport/nvls.cc.
"""

from __future__ import annotations

import re
from collections import Counter

# "... NCCL INFO Channel 00/0 : 0[0] -> 1[0] [send] via NET/IB/0(3)/GDRDMA comm 0x...": the device
# index in the middle differs per channel and says nothing about the kind of transport; a plugin's
# name may hold a blank ("AWS Libfabric").
_VIA = re.compile(
    r"NCCL INFO Channel \d+(?:/\d+)? ?: (?P<start>\d+)\[\w+\] -> (?P<end>\d+)\[\w+\].* "
    r"via (?P<via>(?:NET/[^/\n]+/\d|P2P/|SHM/|COLLNET/)[\w/()]*(?: pointer)?)"
)
_DEVICE_INDEX = re.compile(r"/\d+(?:\(\d+\))?(?=/|$|\()")
_NVLS = re.compile(r"NCCL INFO .*(?:Connected NVLS tree|NVLS comm)")


def transports(log: str) -> tuple[str, ...]:
    """The transports in use, the busiest first: "NET/IB/GDRDMA", "NET/Socket", "P2P/CUMEM", ..."""
    seen: Counter[str] = Counter()
    for line in log.splitlines():
        if match := _VIA.search(line):
            seen[_kind(match["via"])] += 1
        elif _NVLS.search(line):
            seen["NVLS"] += 1
    return tuple(name for name, _ in seen.most_common())


def links(log: str) -> tuple[tuple[int, int, str], ...]:
    """Each way between two ranks that a channel takes, once: (from rank, to rank, transport)."""
    found = (
        (int(match["start"]), int(match["end"]), _kind(match["via"]))
        for match in _VIA.finditer(log)
    )
    return tuple(dict.fromkeys(found))


def _kind(via: str) -> str:
    return _DEVICE_INDEX.sub("", via)
