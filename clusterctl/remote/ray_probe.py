"""Says once a second, as one JSON line, what Ray knows of its nodes. Runs in the head container.

    python3 ray_probe.py ADDRESS:PORT NODE_ADDRESS [--once]

A line is {"nodes": ray.nodes()} or, while Ray does not answer, {"error": text}. One process for
the whole wait: importing Ray and joining as a driver costs seconds.
"""

from __future__ import annotations

import json
import logging
import sys
import time

import ray

PERIOD_S = 1.0


def connect(address: str, node_address: str) -> str:
    """Join as a driver; why it did not work, or an empty text."""
    try:
        ray.init(
            address=address,
            _node_ip_address=node_address,
            namespace="clusterctl",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def say(content: object) -> None:
    print(json.dumps(content), flush=True)


def main(address: str, node_address: str, *flags: str) -> int:
    while problem := connect(address, node_address):
        say({"error": problem})
        if "--once" in flags:
            return 1
        time.sleep(PERIOD_S)
    while True:
        say({"nodes": ray.nodes()})
        if "--once" in flags:
            return 0
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
