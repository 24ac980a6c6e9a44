"""`python -m engine chat MODEL`: a conversation in the terminal, without a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
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
    """Each answer is written as it comes, and remembered."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for line in lines:
        messages.append({"role": "user", "content": line})
        answer = ""
        for piece in llm.stream(llm.tokenizer.encode_chat(messages), params):
            answer += piece
            out.write(piece)
            out.flush()
        out.write("\n")
        messages.append({"role": "assistant", "content": answer})


def _lines(source: TextIO, out: TextIO) -> Iterator[str]:
    """Those that say something; asked for with a prompt where somebody types them."""
    while True:
        if source.isatty():
            out.write(PROMPT)
            out.flush()
        if not (line := source.readline()):
            return
        if line.strip():
            yield line.strip()
