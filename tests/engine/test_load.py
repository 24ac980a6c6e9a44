"""Five hundred streaming clients at once, a tenth of whom leave in the middle."""

from __future__ import annotations

import asyncio
import json
import resource
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.llm import LLM
from engine.sampling_params import SamplingParams
from tests.engine.conftest import MakeCheckpoint
from tests.engine.test_cli import running

CLIENTS = 500
TOKENS = 24
ROUNDS = 5
PROMPTS = [f"client number {number} says" for number in range(20)]
OPTIONS = ["--served-model-name", "tiny", "--max-num-seqs", "64"]


def offline(model: Path) -> list[str]:
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    with LLM(str(model), dtype="float32", device="cpu", kv_cache_memory_bytes=8 << 20) as llm:
        return [llm.generate(prompt, params)[0].outputs[0].text for prompt in PROMPTS]


async def ask(client: httpx.AsyncClient, number: int, expected: list[str]) -> bool:
    """True when all of the answer came, and it was right."""
    leaves = number % 10 == 3
    body: dict[str, Any] = {"prompt": PROMPTS[number % len(PROMPTS)], "temperature": 0}
    body |= {"max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    text = ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
            if leaves and text:
                return False
    assert text == expected[number % len(PROMPTS)]
    return True


async def wave(url: str, expected: list[str]) -> int:
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        return sum(await asyncio.gather(*(ask(client, n, expected) for n in range(CLIENTS))))


def gauge(url: str, name: str) -> float:
    """Of all engines together."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


def resident_kib(pid: int) -> int:
    (line,) = (
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return int(line.split()[1])


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("replicas", ["1", "2"])
def test_five_hundred_streams_lose_no_page_no_answer_and_no_memory(
    checkpoint: MakeCheckpoint, replicas: str
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    model = checkpoint()
    expected = offline(model)
    with running(model, *OPTIONS, "--data-parallel-size", replicas) as (process, url):
        assert process.stderr is not None  # its log would fill the pipe
        threading.Thread(target=process.stderr.read, daemon=True).start()
        blocks = gauge(url, "engine:kv_blocks")
        resident = []
        for _ in range(ROUNDS):
            answered = asyncio.run(wave(url, expected))
            assert answered == CLIENTS - CLIENTS // 10
            while gauge(url, "vllm:num_requests_running") + gauge(url, "vllm:num_requests_waiting"):
                time.sleep(0.05)
            assert gauge(url, "engine:kv_blocks_free") == blocks
            resident.append(resident_kib(process.pid))
        # The first waves fill caches; after them memory must not grow with what was served.
        assert resident[-1] - resident[-3] < 20_000, resident
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
