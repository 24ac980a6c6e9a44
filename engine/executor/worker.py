"""A rank in a process of its own: join the driver, then serve its calls until it says stop.

The same loop runs under every carrier; only who starts the process differs.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection
from queue import SimpleQueue
from typing import Any

from engine import logs
from engine.config import EngineConfig
from engine.executor.wire import Address, Call, Joined, Reply, tune
from engine.shapes import ModelShape
from engine.step import Deferred

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """All that a rank must be told before it can start. It holds the key: never log it.

    `host` is the address at which the other ranks reach this one; `local_rank` counts the ranks
    that share its visible devices.
    """

    rank: int
    local_rank: int
    host: str
    config: EngineConfig
    shape: ModelShape
    runner: str
    driver: Address
    authkey: bytes = field(repr=False)


class Rank:
    """What the driver calls: `start` first, then any method of the Runner."""

    def __init__(self, spec: RankSpec) -> None:
        self._spec = spec
        self._runner: Any = None

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        if method == "start":
            return self._start(*args)
        return getattr(self._runner, method)(*args)

    def _start(self, master_addr: str, master_port: int) -> str:
        """Meet the other ranks and build the Runner. Returns the device."""
        from engine.communicators import build_torch_parallel, rank_device

        spec = self._spec
        replicas = spec.config.data_parallel_size
        device = rank_device(spec.config.device, spec.local_rank, replicas)
        parallel = build_torch_parallel(
            spec.rank,
            spec.config.tensor_parallel_size,
            spec.config.pipeline_parallel_size,
            master_addr,
            master_port,
            device,
            spec.config.step_timeout_s,
        )
        self._runner = load_runner(spec.runner)(spec.config, spec.shape, parallel)
        return str(device)

    def close(self) -> None:
        from engine.communicators import close_torch_parallel

        self._runner = None
        close_torch_parallel()


def load_runner(name: str) -> Any:
    """The class that `name` ("module:class") means."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def run(spec: RankSpec) -> None:
    """Be this rank until the driver says stop. If the driver dies, this process exits at once."""
    import engine.communicators  # noqa: F401 - torch takes seconds: load it before joining

    with Client(spec.driver, authkey=spec.authkey) as connection:
        tune(connection)
        _die_with_driver(connection)
        connection.send(Joined(spec.rank, spec.host, _free_port(spec.host)))
        rank = Rank(spec)
        _serve(connection, rank)
        rank.close()


def main() -> None:
    """Entry point of a worker process: its RankSpec comes over stdin, so that the key is in
    neither argv nor environment."""
    # A signal to the whole process group is the driver's to handle: it ends its ranks itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    spec: RankSpec = pickle.load(sys.stdin.buffer)
    logs.configure(rank=spec.rank)
    run(spec)
    logging.shutdown()
    os._exit(0)  # taking torch apart object by object takes seconds, and serves nobody


def _serve(connection: Connection, rank: Rank) -> None:
    """Obey the calls in their order. A thread sends the answers: a step whose result the device
    still computes must not keep the next one from being started."""
    answers: SimpleQueue[Any] = SimpleQueue()
    sender = threading.Thread(target=_send_answers, args=(connection, answers), daemon=True)
    sender.start()
    while (call := _next_call(connection)) is not None:
        answers.put(_answer(call.method, rank.call, call.method, call.args))
    answers.put(None)
    sender.join()


def _send_answers(connection: Connection, answers: SimpleQueue[Any]) -> None:
    while (reply := answers.get()) is not None:
        if isinstance(reply.value, Deferred):
            reply = _answer("execute", reply.value.wait)
        try:
            connection.send(reply)
        except OSError:  # the driver is gone: _die_with_driver ends this process
            return


def _next_call(connection: Connection) -> Call | None:
    """None: stop, or the driver is gone."""
    try:
        call: Call | None = connection.recv()
    except EOFError:
        return None
    return call


def _answer(method: str, call: Callable[..., Any], *args: Any) -> Reply:
    try:
        return Reply(call(*args))
    except Exception as error:  # whatever a rank raises is its answer
        logger.exception("%s failed", method)
        return Reply(error=f"{type(error).__name__}: {error}")


def _die_with_driver(connection: Connection) -> None:
    """Exit when the driver's end of the connection closes, even in the middle of a call that
    would never return. (PR_SET_PDEATHSIG would not do: it follows the thread that started us.)"""
    hangup = select.poll()
    hangup.register(connection.fileno(), getattr(select, "POLLRDHUP", 0))

    def watch() -> None:
        hangup.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _free_port(host: str) -> int:
    """A port that is free on `host` now; rank 0's becomes the meeting point moments later."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
