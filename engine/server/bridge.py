"""The engine in a thread of its own, and asyncio on the other side."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeAlias

from engine.core import EngineCore, EngineDead
from engine.outputs import Delta, Sample
from engine.request import Output, Request
from engine.sampling_params import SamplingParams
from engine.scheduler import QueueFull

logger = logging.getLogger(__name__)

# How often an idle engine looks whether its ranks are alive.
IDLE_S = 1.0
# A token this recent shows that the engine works; else it is asked for one, and may take so long.
RECENT_S = 5.0
PROBE_S = 10.0

Watch: TypeAlias = Callable[[Sample, Delta], None]

Event: TypeAlias = Output | Exception


class ShuttingDown(RuntimeError):
    """The server is going away: the request may be sent to another one."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class Generation:
    """The samples of one HTTP request while they are computed. It lives in the event loop."""

    def __init__(self, samples: Sequence[Sample], abort: Callable[[Sequence[str]], None]) -> None:
        self.samples = samples
        self._watches: dict[str, Watch] = {}
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._open = {sample.request.request_id: sample for sample in samples}
        self._abort = abort

    @property
    def open(self) -> Collection[Sample]:
        """Those that have not ended."""
        return self._open.values()

    def accepted(self, watch: Callable[[Sample], Watch]) -> None:
        """The engine has taken it: from now on it is measured."""
        self._watches = {sample.request.request_id: watch(sample) for sample in self.samples}

    async def deltas(self) -> AsyncIterator[tuple[Sample, Delta]]:
        """Each step's text until every sample has ended. Raises EngineDead, ShuttingDown or
        outputs.GrammarFailed."""
        while self._open:
            event = await self.events.get()
            if isinstance(event, Exception):
                raise event
            if sample := self._open.get(event.request_id):  # else: ended by a stop string before
                yield sample, self._feed(sample, event)

    def cancel(self) -> None:
        """Nobody waits for the rest any more. Idempotent."""
        if self._open:
            self._abort(list(self._open))
            for request_id, watch in self._watches.items():
                if sample := self._open.get(request_id):
                    watch(sample, Delta("", (), "abort"))
            self._open.clear()

    def _feed(self, sample: Sample, output: Output) -> Delta:
        delta = sample.feed(output)
        self._watches[output.request_id](sample, delta)
        if sample.ended:
            del self._open[output.request_id]
            if output.finish_reason is None:
                self._abort([output.request_id])
        return delta


class AsyncEngine:
    """Drives an EngineCore. Everything public is called in the event loop of `start`, except
    `stop`, which may come from a signal handler.

    `on_death` is called in that loop when the engine died: who runs the server decides what
    follows. Until `close` the thread stays, to refuse what still comes. `watch` is called for each
    sample, and what it returns with each of the sample's deltas.
    """

    def __init__(
        self,
        core: EngineCore,
        on_death: Callable[[], None] = lambda: None,
        watch: Callable[[Sample], Watch] = lambda _: lambda *_: None,
    ) -> None:
        self._core = core
        self._on_death = on_death
        self._watch = watch
        self._draining = False
        self._progress = float("-inf")  # when a token last came
        self._submitted: set[Generation] = set()
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._generations: dict[str, Generation] = {}  # by request id; the thread's alone
        self._refusal: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def dead(self) -> bool:
        return isinstance(self._refusal, EngineDead)

    @property
    def max_model_len(self) -> int:
        return self._core.max_model_len

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @property
    def busy(self) -> bool:
        """Whether a request has not ended."""
        return bool(self._generations)

    def backlog(self) -> float:
        """How many steps' worth of work waits here: each sample that has not ended takes one of a
        step's places, and a prompt that is not read yet its part of a step's tokens."""
        self._submitted = {one for one in self._submitted if one.open}
        samples = [sample for generation in self._submitted for sample in generation.open]
        unread = sum(len(one.request.prompt_token_ids) for one in samples if not one.num_tokens)
        config = self._core.config
        return len(samples) / config.max_num_seqs + unread / config.max_num_batched_tokens

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._probing = asyncio.Lock()
        self._thread.start()

    def drain(self) -> None:
        """Refuse new requests, with ShuttingDown; those that run may end."""
        self._draining = True

    async def why_not_ready(self) -> str | None:
        """None when a token came a moment ago, or comes now that it is asked for."""
        async with self._probing:  # one question at a time, whoever asks
            if self._draining:
                return str(ShuttingDown())
            if time.monotonic() - self._progress < RECENT_S and self._refusal is None:
                return None
            return await self._probe()

    async def _probe(self) -> str | None:
        sampling = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        name = f"probe-{time.monotonic_ns()}"
        sample = Sample(0, Request(name, (0,), sampling), lambda _: "")
        try:
            generation = await asyncio.wait_for(self.submit([sample]), PROBE_S)
            await asyncio.wait_for(exhaust(generation), PROBE_S)
        except (asyncio.TimeoutError, TimeoutError):
            return f"no token came within {PROBE_S:g} s"
        except (EngineDead, ShuttingDown, QueueFull) as error:
            return str(error)
        return None

    def stop(self) -> None:
        """End every request, and refuse new ones, with ShuttingDown."""
        self._commands.put(lambda: self._refuse(ShuttingDown()))

    async def close(self) -> None:
        """Stop, and wait for the step that is running."""
        self.stop()
        self._commands.put(self._end)
        await asyncio.to_thread(self._thread.join)

    async def submit(self, samples: Sequence[Sample]) -> Generation:
        """Queue them. Raises ValueError when they can never run, QueueFull when they cannot now,
        EngineDead, ShuttingDown."""
        if self._draining:
            raise ShuttingDown
        generation = Generation(samples, self._abort)
        accepted: asyncio.Future[None] = self._loop.create_future()
        self._submitted.add(generation)
        self._commands.put(lambda: self._add(generation, accepted))
        try:
            await accepted
        except asyncio.CancelledError:
            generation.cancel()
            raise
        except Exception:
            self._submitted.discard(generation)
            raise
        generation.accepted(self._watch)
        return generation

    def _abort(self, request_ids: Sequence[str]) -> None:
        self._commands.put(lambda: self._drop(request_ids))

    # From here on: in the thread.

    def _run(self) -> None:
        try:
            while not self._closed:
                self._obey()
                if self._refusal is None:
                    self._work()
        except Exception as error:
            logger.exception("the engine thread failed")
            self._die(EngineDead(f"{type(error).__name__}: {error}"))

    def _obey(self) -> None:
        """Carry out the commands that have come. With nothing to compute, wait for one."""
        busy = self._refusal is None and self._core.has_work
        try:
            self._commands.get(block=not busy, timeout=IDLE_S)()
            while True:
                self._commands.get_nowait()()
        except Empty:
            return

    def _work(self) -> None:
        try:
            if self._core.has_work:
                self._deliver(self._core.step())
            else:
                self._core.check_health()
        except EngineDead as error:
            self._die(error)

    def _die(self, error: EngineDead) -> None:
        logger.error("the engine is dead: %s", error)
        self._refuse(error)
        self._loop.call_soon_threadsafe(self._on_death)

    def _add(self, generation: Generation, accepted: asyncio.Future[None]) -> None:
        error = self._refusal or self._try_to_add(generation)
        self._loop.call_soon_threadsafe(_settle, accepted, error)

    def _try_to_add(self, generation: Generation) -> Exception | None:
        ids = [sample.request.request_id for sample in generation.samples]
        try:
            for sample in generation.samples:
                self._core.add(sample.request)
        except (ValueError, QueueFull, EngineDead) as error:
            self._core.abort(ids)
            return error
        self._generations.update(dict.fromkeys(ids, generation))
        return None

    def _drop(self, request_ids: Sequence[str]) -> None:
        self._core.abort(request_ids)
        for request_id in request_ids:
            self._generations.pop(request_id, None)

    def _deliver(self, outputs: Iterable[Output]) -> None:
        events: list[tuple[Generation, Event]] = []
        for output in outputs:
            self._progress = time.monotonic()
            events.append((self._generations[output.request_id], output))
            if output.finish_reason is not None:
                del self._generations[output.request_id]
        self._loop.call_soon_threadsafe(_hand_over, events)

    def _refuse(self, error: Exception) -> None:
        if self._refusal is not None:
            return
        self._refusal = error
        self._core.abort(list(self._generations))
        events: list[tuple[Generation, Event]] = [
            (generation, error) for generation in set(self._generations.values())
        ]
        self._generations.clear()
        self._loop.call_soon_threadsafe(_hand_over, events)

    def _end(self) -> None:
        self._closed = True


async def exhaust(generation: Generation) -> None:
    """Wait for its end. When that is cut short, so is the generation."""
    try:
        async for _ in generation.deltas():
            pass
    finally:
        generation.cancel()


def _hand_over(events: Iterable[tuple[Generation, Event]]) -> None:
    for generation, event in events:
        generation.events.put_nowait(event)


def _settle(accepted: asyncio.Future[None], error: Exception | None) -> None:
    if accepted.cancelled():
        return
    if error is None:
        accepted.set_result(None)
    else:
        accepted.set_exception(error)
