"""Questions, where somebody is there to answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from clusterctl.console.drawing import settings, show
from clusterctl.console.launching import plan_grid
from clusterctl.secret import Secret

if TYPE_CHECKING:
    from clusterctl.launch import LaunchPlan


def can_ask() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, *, about: LaunchPlan | None = None) -> bool:
    """Ask on the terminal, below the plan it is about. Without a terminal the answer is no."""
    if not can_ask():
        return False
    with _picture_stopped():
        if about is not None:
            show(plan_grid(about), sys.stderr)
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def _picture_stopped() -> Iterator[None]:
    """What is drawn again and again would run over the question."""
    live = settings.live
    if live is None:
        yield
        return
    live.stop()
    try:
        yield
    finally:
        live.start()


def ask_line(prompt: str) -> str | None:
    """A line of stdin without its end, None at the end; asked for where somebody types it."""
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def ask_secret(prompt: str) -> Secret | None:
    """A secret typed unseen; None without a terminal or when nothing was typed."""
    from getpass import getpass

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return Secret(text) if (text := getpass(f"{prompt}: ", sys.stderr)) else None
