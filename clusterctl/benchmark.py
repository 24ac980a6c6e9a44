"""How fast an API answers: requests at rising concurrency, timed as their clients see them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from clusterctl.apiclient import ApiClient, Piece
from clusterctl.errors import ClusterctlError

WORDS = (
    *("river", "stone", "winter", "market", "garden", "letter", "engine", "silver", "morning"),
    *("window", "island", "paper", "signal", "mountain", "coffee", "number", "bridge", "yellow"),
    *("doctor", "travel", "memory", "forest", "kitchen", "planet"),
)
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Workload:
    """`input_words`: words of each prompt (the server counts its tokens); `output_tokens`: what is
    asked for, without an early end; `requests`: at each concurrency."""

    concurrencies: tuple[int, ...]
    requests: int
    input_words: int
    output_tokens: int
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """One request as its client saw it, in seconds. `error` says why it is none."""

    first: float = 0.0
    last: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""

    @property
    def per_token(self) -> float | None:
        """Seconds between tokens after the first; None where there is only one."""
        if self.output_tokens < 2:
            return None
        return (self.last - self.first) / (self.output_tokens - 1)


@dataclass(frozen=True)
class Level:
    """What came of one concurrency. Times in seconds; TTFT: time to first token, TPOT: time per
    output token after it. None where no request was answered."""

    concurrency: int
    requests: int
    failed: int
    seconds: float
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    ttft_p50: float | None
    ttft_p99: float | None
    tpot_p50: float | None
    tpot_p99: float | None
    error: str = ""


def run(
    client: ApiClient, model: str, work: Workload, told: Callable[[Level], None] = lambda _: None
) -> list[Level]:
    """Each concurrency in turn, after one short request that warms up; `told` hears of each.

    Raises what the first request fails with: a benchmark of errors is of no use.
    """
    draw = random.Random(work.seed)
    for _ in client.complete(model, prompt(draw, 8), max_tokens=WARM_UP_TOKENS):
        pass
    levels = []
    for concurrency in work.concurrencies:
        prompts = [prompt(draw, work.input_words) for _ in range(work.requests)]
        levels.append(_level(client, model, work, concurrency, prompts))
        told(levels[-1])
    return levels


def prompt(draw: random.Random, words: int) -> str:
    """No two alike, so that a prefix cache does not answer for the engine."""
    return " ".join(draw.choice(WORDS) for _ in range(words))


def _level(
    client: ApiClient, model: str, work: Workload, concurrency: int, prompts: Sequence[str]
) -> Level:
    pool = ThreadPoolExecutor(concurrency)
    began = time.perf_counter()
    try:
        answers = list(pool.map(lambda text: ask(client, model, work, text), prompts))
    finally:  # after Ctrl-C nobody waits for the rest: closing the client ends what is under way
        pool.shutdown(wait=False, cancel_futures=True)
    return level_of(concurrency, answers, time.perf_counter() - began)


def ask(client: ApiClient, model: str, work: Workload, text: str) -> Answer:
    pieces = client.complete(
        model, text, max_tokens=work.output_tokens, temperature=0, ignore_eos=True
    )
    try:
        return answer_of(pieces)
    except ClusterctlError as error:
        return Answer(error=error.message)


def answer_of(pieces: Iterator[Piece]) -> Answer:
    first, last, usage = None, 0.0, None
    for piece in pieces:
        if piece.text:
            first, last = piece.at if first is None else first, piece.at
        usage = piece.usage or usage
    if usage is None or first is None:
        return Answer(error="the stream ended without a token or without its usage")
    return Answer(first, last, usage["prompt_tokens"], usage["completion_tokens"])


def level_of(concurrency: int, answers: Sequence[Answer], seconds: float) -> Level:
    good = [one for one in answers if not one.error]
    firsts = [one.first for one in good]
    between = [one.per_token for one in good if one.per_token is not None]
    output = sum(one.output_tokens for one in good)
    return Level(
        concurrency=concurrency,
        requests=len(answers),
        failed=len(answers) - len(good),
        seconds=seconds,
        prompt_tokens=round(fmean(one.prompt_tokens for one in good)) if good else 0,
        output_tokens=output,
        output_tokens_per_s=output / seconds,
        ttft_p50=percentile(firsts, 50),
        ttft_p99=percentile(firsts, 99),
        tpot_p50=percentile(between, 50),
        tpot_p99=percentile(between, 99),
        error=next((one.error for one in answers if one.error), ""),
    )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that `percent` of all do not exceed (nearest rank)."""
    if not values:
        return None
    rank = max(1, -(-len(values) * percent // 100))
    return sorted(values)[int(rank) - 1]


def document(url: str, model: str, work: Workload, levels: Sequence[Level]) -> dict[str, Any]:
    return {
        "url": url,
        "model": model,
        "workload": asdict(work),
        "levels": [asdict(one) for one in levels],
    }
