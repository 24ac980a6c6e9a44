"""Says once a second, as one JSON line, what Ray knows of its nodes. Runs in the head container.

    python3 ray_probe.py ADDRESS:PORT NODE_ADDRESS (--once | --seconds N)

A line is {"nodes": ray.nodes()} or, while Ray does not answer, {"error": text}. One process for
the whole wait: importing Ray and joining as a driver costs seconds. Its first line, {"pid": n}, is
how the one who waits ends it; it ends by itself after N seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
import time

import ray

PERIOD_S = 1.0


def connect(address: str, node_address: str) -> str:
    """Join as a driver; why it did not work, or an empty text.

    The port is tried first: Ray waits most of a minute for a head that is not there.
    """
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        return f"{address}: {error.strerror or error}"
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


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("node_address")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.0)
    options = parser.parse_args(argv)
    say({"pid": os.getpid()})
    deadline = time.monotonic() + options.seconds
    problem: str | None = "not connected"
    while True:
        if problem:
            problem = connect(options.address, options.node_address)
        say({"error": problem} if problem else {"nodes": ray.nodes()})  # type: ignore[no-untyped-call]
        if options.once or time.monotonic() > deadline:
            return
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    main(sys.argv[1:])
