#!/usr/bin/env python3
"""How long people wait: requests arrive at random times (Poisson) at the HTTP server, streamed.

    scripts/bench/online.py MODEL --rate 2 --requests 60 -- --dtype bfloat16 --device cpu

What follows -- is given to `python -m engine serve`; --url drives a server that runs already. TTFT
is the time to the first token, TPOT the mean time between the others, of each request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Waited:
    """Seconds."""

    first: float
    each: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument(
        "--vocab", type=int, default=10000, help="prompts are drawn from so many ids"
    )
    parser.add_argument("--url", help="of a server that runs already: none is started")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:cut])
    if arguments.url:
        measure(arguments.url, arguments)
        return 0
    command = [sys.executable, "-m", "engine", "serve", arguments.model, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [*command, *words[cut + 1 :]], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        measure(listening(server), arguments)
    finally:
        server.terminate()
        server.wait(30)
    return 0


def measure(url: str, arguments: argparse.Namespace) -> None:
    asyncio.run(drive(url, arguments, 2))  # warms up
    began = time.perf_counter()
    waited = asyncio.run(drive(url, arguments, arguments.requests))
    report(arguments, waited, time.perf_counter() - began)


def listening(server: subprocess.Popen[str]) -> str:
    """Its address, when it says so; the rest of its log is read and dropped."""
    assert server.stderr is not None
    for line in server.stderr:
        sys.stderr.write(line)
        if found := re.search(r"http://[\d.]+:\d+", line):
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return found[0]
    sys.exit("the server ended before it listened")


async def drive(url: str, arguments: argparse.Namespace, count: int) -> list[Waited]:
    dice = random.Random(count)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        (served,) = (await client.get("/v1/models")).json()["data"]
        running = []
        for _ in range(count):
            prompt = dice.choices(range(arguments.vocab), k=arguments.input_len)
            body = {
                "model": served["id"],
                "prompt": prompt,
                "max_tokens": arguments.output_len,
                "ignore_eos": True,
                "temperature": 0,
                "stream": True,
            }
            running.append(asyncio.create_task(ask(client, body)))
            await asyncio.sleep(dice.expovariate(arguments.rate))
        return await asyncio.gather(*running)


async def ask(client: httpx.AsyncClient, body: dict[str, object]) -> Waited:
    began = time.perf_counter()
    first = 0.0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                assert "error" not in json.loads(line[6:]), line
                first = first or time.perf_counter() - began
    assert isinstance(body["max_tokens"], int)
    return Waited(first, (time.perf_counter() - began - first) / (body["max_tokens"] - 1))


def report(arguments: argparse.Namespace, waited: Sequence[Waited], seconds: float) -> None:
    tokens = len(waited) * arguments.output_len
    print(
        f"{arguments.model}: {len(waited)} requests of {arguments.input_len} in, "
        f"{arguments.output_len} out, {arguments.rate:g} a second: {tokens / seconds:,.0f} tok/s"
    )
    for name, values in (("TTFT", [w.first for w in waited]), ("TPOT", [w.each for w in waited])):
        ordered = sorted(values)
        worst = ordered[math.ceil(0.99 * len(ordered)) - 1]  # the nearest rank
        print(f"{name}: p50 {statistics.median(ordered) * 1e3:,.0f} ms, p99 {worst * 1e3:,.0f} ms")


if __name__ == "__main__":
    sys.exit(main())
