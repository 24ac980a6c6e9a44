"""This terminal lent to something far away: raw mode, window size, both directions."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from clusterctl.transport.base import ByteStream

CHUNK = 4096
NO_TERMINAL = (80, 24)


def terminal_type() -> str:
    return os.environ.get("TERM", "dumb")


def terminal_size() -> tuple[int, int]:
    """Columns, rows. Asked of the terminal itself: COLUMNS may be older than the window."""
    try:
        return os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return NO_TERMINAL


def attach(remote: ByteStream, resize: Callable[[int, int], object]) -> None:
    """Until the remote side ends: keys go there, its output comes here. `resize(columns, rows)`
    is called at once and whenever the window changes.

        stdin ──poll──► remote          remote ──thread──► stdout
                 ▲                                 │
                 └──── wake pipe ◄── at its end ───┘◄── SIGWINCH
    """
    wake, waker = os.pipe()
    errors: list[BaseException] = []
    reader = threading.Thread(target=_show, args=(remote, waker, errors), daemon=True)
    with _raw_mode(), _on_window_change(waker):
        resize(*terminal_size())
        reader.start()
        _send_keys(remote, wake, resize)
    os.close(wake)
    os.close(waker)
    if errors:
        raise errors[0]


ENDED, RESIZED = b"e", b"r"


def _show(remote: ByteStream, waker: int, errors: list[BaseException]) -> None:
    try:
        while data := remote.recv(CHUNK):
            os.write(sys.stdout.fileno(), data)
    except BaseException as error:  # noqa: BLE001  (raised again where attach waits)
        errors.append(error)
    os.write(waker, ENDED)


def _send_keys(remote: ByteStream, wake: int, resize: Callable[[int, int], object]) -> None:
    keys = sys.stdin.fileno()
    poll = select.poll()
    poll.register(keys, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if wake in ready:
            if os.read(wake, 1) == ENDED:
                return
            resize(*terminal_size())
        elif keys in ready:
            typed = os.read(keys, CHUNK)
            if typed:
                remote.sendall(typed)
            else:
                poll.unregister(keys)
                remote.shutdown_write()


@contextmanager
def _raw_mode() -> Iterator[None]:
    """Keys unchanged and unechoed, where stdin is a terminal."""
    keys = sys.stdin.fileno()
    if not os.isatty(keys):
        yield
        return
    before = termios.tcgetattr(keys)
    try:
        tty.setraw(keys)
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


@contextmanager
def _on_window_change(waker: int) -> Iterator[None]:
    def changed(_signal: int, _frame: FrameType | None) -> None:
        os.write(waker, RESIZED)

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
