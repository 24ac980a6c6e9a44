"""`python -m engine serve|bench|chat MODEL ...`"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial

from engine import logs
from engine.bench import add_bench_flags, bench
from engine.chat import add_chat_flags, chat
from engine.config import EngineConfig
from engine.core import EngineDead
from engine.executor.base import RankFailed
from engine.executor.placement import PlacementError
from engine.server.flags import ServeConfig, add_engine_flags, add_flags, config_of

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 ended as asked, 1 failed, 2 wrong usage, 130 interrupted."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        config = config_of(EngineConfig, arguments)
    except ValueError as error:
        parser.error(str(error))
    logs.configure()
    try:
        return COMMANDS[arguments.command](config, arguments)
    except (ValueError, OSError, EngineDead, RankFailed, PlacementError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 130


def _serve(config: EngineConfig, arguments: argparse.Namespace) -> int:
    from engine.server.serve import serve  # brings FastAPI

    return serve(config, config_of(ServeConfig, arguments))


COMMANDS = {"serve": _serve, "bench": bench, "chat": chat}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_, add_own in (
        ("serve", "answer OpenAI's API over HTTP", partial(add_flags, config=ServeConfig)),
        ("bench", "measure tokens a second", add_bench_flags),
        ("chat", "talk to the model in this terminal", add_chat_flags),
    ):
        one = commands.add_parser(name, help=help_, allow_abbrev=False)
        add_own(one)
        add_engine_flags(one)
    return parser


if __name__ == "__main__":
    sys.exit(main())
