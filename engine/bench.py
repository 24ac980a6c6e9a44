"""`python -m engine bench MODEL`: how many tokens a second, without a server."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import asdict, dataclass

from engine.config import EngineConfig
from engine.llm import LLM
from engine.sampling_params import SamplingParams

Range = tuple[int, int]


@dataclass(frozen=True)
class Workload:
    """Prompts of random token ids, and how many tokens each one's answer has."""

    prompts: list[list[int]]
    output_lengths: list[int]


@dataclass(frozen=True)
class Measured:
    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float

    @property
    def output_tokens_per_s(self) -> float:
        return self.output_tokens / self.seconds


def workload(requests: int, input_len: Range, output_len: Range, vocab: int, seed: int) -> Workload:
    """The draws of nano-vllm's bench.py, in its order: with 256 requests, 100-1024 tokens in and
    out, ids below 10,001 and seed 0 it is that workload."""
    draw = random.Random(seed)
    prompts = [
        [draw.randint(0, vocab - 1) for _ in range(draw.randint(*input_len))]
        for _ in range(requests)
    ]
    return Workload(prompts, [draw.randint(*output_len) for _ in range(requests)])


def measure(llm: LLM, work: Workload, temperature: float) -> Measured:
    """After one short answer that warms up."""
    llm.generate([work.prompts[0][:8]], _params(temperature, 2), use_tqdm=False)
    params = [_params(temperature, length) for length in work.output_lengths]
    began = time.perf_counter()
    made = llm.generate(work.prompts, params)
    seconds = time.perf_counter() - began
    return Measured(
        requests=len(made),
        prompt_tokens=sum(len(one.prompt_token_ids) for one in made),
        output_tokens=sum(len(one.outputs[0].token_ids) for one in made),
        seconds=seconds,
    )


def add_bench_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=32, metavar="N", help="(default: 32)")
    for name in ("input", "output"):
        parser.add_argument(
            f"--{name}-len",
            type=_range,
            default=(64, 64),
            metavar="N[-M]",
            help="tokens, one number or a range drawn from evenly (default: 64)",
        )
    parser.add_argument("--temperature", type=float, default=0.6, metavar="T")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")


def bench(config: EngineConfig, arguments: argparse.Namespace) -> int:
    """Raises ValueError for requests that are longer than the model allows."""
    with LLM(config) as llm:
        vocab = min(10_001, llm.vocab_size)
        work = workload(
            arguments.requests, arguments.input_len, arguments.output_len, vocab, config.seed
        )
        measured = measure(llm, work, arguments.temperature)
    rate = round(measured.output_tokens_per_s, 1)
    told = {"model": config.model, **asdict(measured), "output_tokens_per_s": rate}
    told["seconds"] = round(measured.seconds, 3)
    sys.stdout.write(f"{json.dumps(told)}\n" if arguments.json else _table(told))
    return 0


def _table(told: dict[str, object]) -> str:
    width = max(map(len, told))
    return "".join(f"{name.replace('_', ' '):{width}}  {value}\n" for name, value in told.items())


def _params(temperature: float, tokens: int) -> SamplingParams:
    return SamplingParams(temperature=temperature, max_tokens=tokens, ignore_eos=True)


def _range(text: str) -> Range:
    """`64` or `64-128`."""
    low, _, high = text.partition("-")
    if not (low.isdigit() and (high or low).isdigit() and 1 <= int(low) <= int(high or low)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a range such as 64-128")
    return int(low), int(high or low)
