"""What NCCL's own log (NCCL_DEBUG=INFO) says about how ranks reach each other. PURE."""

from __future__ import annotations

import re
from collections import Counter

# "... NCCL INFO Channel 00/0 : 0[0] -> 1[0] [send] via NET/IB/0(3)/GDRDMA comm 0x...": the device
# index in the middle differs per channel and says nothing about the kind of transport.
_VIA = re.compile(r"NCCL INFO Channel \d+(?:/\d+)? ?: .* via (?P<via>[\w/()]+)")
_DEVICE_INDEX = re.compile(r"/\d+(?:\(\d+\))?(?=/|$)")
_NVLS = re.compile(r"NCCL INFO .*(?:Connected NVLS tree|NVLS comm)")


def transports(log: str) -> tuple[str, ...]:
    """The transports in use, the busiest first: "NET/IB/GDRDMA", "NET/Socket", "P2P/CUMEM", ..."""
    seen: Counter[str] = Counter()
    for line in log.splitlines():
        if match := _VIA.search(line):
            seen[_DEVICE_INDEX.sub("", match["via"])] += 1
        elif _NVLS.search(line):
            seen["NVLS"] += 1
    return tuple(name for name, _ in seen.most_common())
