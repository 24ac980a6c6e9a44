"""`python -m engine serve`: load, then listen, until a signal or the engine's death."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
from types import FrameType
from typing import NoReturn

import uvicorn

from engine import logs
from engine.checkpoint import checkpoint_directory
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.server.app import create_app
from engine.server.auth import read_key
from engine.server.bridge import AsyncEngine
from engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# After the engine's death /health says 503 for this long; then the process ends, to be replaced.
DEATH_GRACE_S = 5.0
# How long connections may take to close after their requests were ended.
CLOSE_GRACE_S = 3


def serve(config: EngineConfig, arguments: argparse.Namespace) -> int:
    """Exit code: 0 after a signal, 1 when the engine died. Raises OSError when the port is taken,
    before anything is loaded."""
    logs.configure()
    signal.signal(signal.SIGTERM, _exit)
    key = read_key(arguments.api_key_file, os.environ)
    listen(arguments.host, arguments.port).close()
    core = EngineCore(config)
    try:
        tokenizer = Tokenizer(checkpoint_directory(config.model))
        names = arguments.served_model_name or [config.model]
        server = Server(core, tokenizer, names, key)
        with listen(arguments.host, arguments.port) as listener:
            logger.info("Listening on http://%s:%d", *listener.getsockname()[:2])
            server.run([listener])
        return 1 if server.engine.dead else 0
    finally:
        core.shutdown()


class Server(uvicorn.Server):
    """uvicorn, which on a signal ends the requests in flight instead of waiting for them."""

    def __init__(
        self, core: EngineCore, tokenizer: Tokenizer, names: list[str], key: str | None
    ) -> None:
        self.engine = AsyncEngine(core, on_death=self._end_soon)
        app = create_app(self.engine, tokenizer, names, key)
        super().__init__(
            uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=CLOSE_GRACE_S)
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.engine.stop()
        super().handle_exit(sig, frame)

    def _end_soon(self) -> None:
        asyncio.get_running_loop().call_later(DEATH_GRACE_S, setattr, self, "should_exit", True)


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _exit(*_: object) -> NoReturn:
    raise SystemExit(0)
