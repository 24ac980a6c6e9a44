"""`python -m engine chat MODEL`: a conversation in the terminal, without a server."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TextIO

from engine.config import EngineConfig
from engine.llm import LLM, Message
from engine.sampling_params import SamplingParams

PROMPT = "> "


def add_chat_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="how the model is to behave")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="of one answer (unset: all the room there is)"
    )


def chat(config: EngineConfig, arguments: argparse.Namespace) -> int:
    """Lines in, answers out, until the end of input. Raises ValueError when the conversation has
    grown too long for the model."""
    params = SamplingParams(temperature=arguments.temperature, max_tokens=arguments.max_tokens)
    with LLM(config) as llm:
        converse(llm, params, arguments.system, _lines(sys.stdin, sys.stdout), sys.stdout)
    return 0


def converse(
    llm: LLM, params: SamplingParams, system: str | None, lines: Iterable[str], out: TextIO
) -> None:
    """Each answer is written as it comes, up to Ctrl-C, and remembered."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for line in lines:
        messages.append({"role": "user", "content": line})
        answer = ""
        prompt = llm.tokenizer.encode_chat(messages)
        with _interrupts() as interrupted, closing(llm.stream(prompt, params)) as pieces:
            for piece in pieces:
                answer += piece
                out.write(piece)
                out.flush()
                if interrupted.is_set():
                    break
        out.write("\n")
        messages.append({"role": "assistant", "content": answer})


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Set by Ctrl-C, which in the middle of a step would end the engine."""
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(source: TextIO, out: TextIO) -> Iterator[str]:
    """Those that say something; asked for with a prompt where somebody types them."""
    while True:
        if source.isatty():
            out.write(PROMPT)
            out.flush()
        if not (line := source.readline()):
            out.write("\n" if source.isatty() else "")  # the next prompt is the shell's
            return
        if line.strip():
            yield line.strip()
