"""`python -m engine serve`: load, then listen, until a signal or the engine's death."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import uvicorn

from engine.checkpoint import checkpoint_directory
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.server.app import AppConfig, create_app
from engine.server.auth import read_key
from engine.server.flags import ServeConfig
from engine.server.replicas import Replicas, start_replicas
from engine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from engine.server.metrics import Metrics

logger = logging.getLogger(__name__)

# After the engine's death /health says 503 for this long; then the process ends, to be replaced.
DEATH_GRACE_S = 5.0
# How long connections may take to close after their requests were ended.
CLOSE_GRACE_S = 3
# How often a draining server looks whether all requests have ended.
DRAIN_LOOK_S = 0.05


def serve(config: EngineConfig, options: ServeConfig) -> int:
    """Exit code: 0 after a signal, 1 when the engine died. Raises OSError when the port is taken,
    or certificate and key do not do, before anything is loaded."""
    signal.signal(signal.SIGTERM, _exit)
    key = read_key(options.api_key_file, os.environ)
    tls = Tls(options.ssl_certfile, options.ssl_keyfile)
    tls.check()
    listen(options.host, options.port).close()
    cores = start_replicas(config)
    try:
        tokenizer = Tokenizer(checkpoint_directory(config.model))
        app = AppConfig(
            model_names=options.served_model_name or [config.model],
            api_key=key,
            allowed_origins=options.allowed_origins,
            max_body_bytes=options.max_body_bytes,
            tool_format=options.tool_call_parser,
        )
        server = Server(cores, tokenizer, app, options.shutdown_timeout, tls)
        with listen(options.host, options.port) as listener:
            logger.info("Listening on %s://%s:%d", tls.scheme, *listener.getsockname()[:2])
            server.run([listener])
        return 1 if server.engine.dead else 0
    finally:
        for core in cores:
            core.shutdown()


@dataclass(frozen=True)
class Tls:
    """Files of certificate and key; without a certificate the server speaks plain HTTP."""

    certificate: Path | None = None
    key: Path | None = None

    @property
    def scheme(self) -> str:
        return "https" if self.certificate else "http"

    def check(self) -> None:
        """Raises OSError naming the files."""
        if self.certificate is None:
            if self.key is not None:
                raise ValueError("--ssl-keyfile needs --ssl-certfile")
            return
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except OSError as error:
            files = f"{self.certificate}, {self.key or 'its key in the same file'}"
            raise OSError(f"no TLS by {files}: {error}") from error


class Server(uvicorn.Server):
    """uvicorn, which on a first signal lets the requests in flight run for `drain_s` more, and on
    a second one ends them."""

    def __init__(
        self,
        cores: Sequence[EngineCore],
        tokenizer: Tokenizer,
        config: AppConfig,
        drain_s: float,
        tls: Tls = Tls(),
    ) -> None:
        counted = _metrics(cores, config)
        self.engine = Replicas(cores, self._end_soon, counted.watches if counted else None)
        self._drain_s = drain_s
        self._signals = 0
        app = create_app(self.engine, tokenizer, config, counted)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                timeout_graceful_shutdown=CLOSE_GRACE_S,
                ssl_certfile=tls.certificate,
                ssl_keyfile=tls.key,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._how = (sig, frame)
        if self._signals == 1 and self.started:
            self.engine.loop.call_soon_threadsafe(self._begin_drain)
        else:
            self._exit_now()

    def _begin_drain(self) -> None:
        """Connections are still answered: /ready says 503, and so does a new request."""
        self.engine.drain()
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._drain_s
        while self.engine.busy and time.monotonic() < deadline and self._signals == 1:
            await asyncio.sleep(DRAIN_LOOK_S)
        self._exit_now()

    def _exit_now(self) -> None:
        self.engine.stop()
        super().handle_exit(*self._how)

    def _end_soon(self) -> None:
        asyncio.get_running_loop().call_later(DEATH_GRACE_S, setattr, self, "should_exit", True)


def _metrics(cores: Sequence[EngineCore], config: AppConfig) -> Metrics | None:
    if find_spec("prometheus_client") is None:
        logger.info("No /metrics: the package prometheus-client is not installed")
        return None
    from engine.server.metrics import Metrics

    return Metrics(cores, config.model_names[0])


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _exit(*_: object) -> NoReturn:
    raise SystemExit(0)
