"""Token ids becoming text, one at a time: nothing is said that a later token could unsay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

# What a decoder writes for bytes that are no character, or not one yet.
UNFINISHED = "\ufffd"


class Detokenizer:
    """Incremental text. Tokens are decoded in a window that starts one finished piece back: some
    decoders drop a leading space, and only the context shows whether a space belongs there."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._window = 0  # where the window starts
        self._finished = 0  # the tokens before it are out, to the last character
        self._said = 0  # how many characters of the window are out

    def push(self, token_id: int) -> str:
        """The text that is now certain."""
        self._ids.append(token_id)
        text = self._decode(self._ids[self._window :])
        certain = text.rstrip(UNFINISHED)
        new = certain[self._said :]
        self._said = max(self._said, len(certain))
        if new and certain == text:
            self._window, self._finished = self._finished, len(self._ids)
            self._said = len(self._decode(self._ids[self._window :]))
        return new

    def flush(self) -> str:
        """The rest, at the end: unfinished bytes stay what the decoder writes for them."""
        text = self._decode(self._ids[self._window :])
        new, self._said = text[self._said :], len(text)
        return new


class StopMatcher:
    """Finds the first of some strings in growing text, across the borders of its pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is surely before any stop string, and the stop string if there is one."""
        text = self._held + text
        found = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if found:
            position, stop = min(found, key=lambda hit: hit[0])
            return text[:position], stop
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back because it might have become a stop string."""
        text, self._held = self._held, ""
        return text


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
