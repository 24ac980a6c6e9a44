"""Runners driven by hand, without scheduler and executor: threads, and a loop over steps."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from engine.communicators import thread_world
from engine.config import EngineConfig
from engine.runner import Runner
from engine.sampling_params import SamplingParams
from engine.shapes import read_shape
from engine.step import ScheduledRequest, Step

GREEDY = SamplingParams(temperature=0.0)
BLOCKS_EACH = 16


class Ranks:
    """The Runners of one thread world, loaded, with KV memory for `room` requests."""

    def __init__(self, model: Path, tp: int = 1, pp: int = 1, room: int = 8, **config: Any) -> None:
        config = {"dtype": "float32", "device": "cpu", **config}
        self.config = EngineConfig(
            model=str(model), tensor_parallel_size=tp, pipeline_parallel_size=pp, **config
        )
        shape = read_shape(model)
        world = thread_world(tp, pp, torch.device("cpu"))
        self.runners = [Runner(self.config, shape, context) for context in world.contexts]
        self.collective("load_weights")
        self.collective("allocate_kv", room * BLOCKS_EACH)

    def collective(self, method: str, *args: Any) -> list[Any]:
        with ThreadPoolExecutor(len(self.runners)) as pool:
            return list(pool.map(lambda runner: getattr(runner, method)(*args), self.runners))

    def execute(self, *requests: ScheduledRequest) -> dict[str, int]:
        """One step; checks that only the last stage's first rank answers."""
        *others, answer = self.collective("execute", Step(5, requests))
        tp = self.config.tensor_parallel_size
        assert [other for other in (*others, answer) if other is not None] == [
            (*others, answer)[-tp]
        ]
        result = (*others, answer)[-tp]
        assert result.step_id == 5
        return dict(result.token_ids)

    def blocks(self, place: int, stop: int) -> tuple[int, ...]:
        """Those of the request at `place`, for positions up to `stop`."""
        used = -(-stop // self.config.block_size)
        return tuple(place * BLOCKS_EACH + block for block in range(used))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        *,
        chunk: int = 1000,
        sampling: SamplingParams = GREEDY,
    ) -> list[list[int]]:
        """`tokens` new ids for each prompt, all together, prompts read `chunk` tokens a step."""
        texts = [list(prompt) for prompt in prompts]
        done = [0] * len(texts)
        while any(len(t) < len(p) + tokens for t, p in zip(texts, prompts, strict=True)):
            work = []
            for place, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
                if len(text) == len(prompt) + tokens:
                    continue
                new = text[done[place] : done[place] + chunk]
                stop = done[place] + len(new)
                work.append(
                    ScheduledRequest(
                        str(place),
                        tuple(new),
                        done[place],
                        self.blocks(place, stop),
                        stop == len(text),
                        sampling,
                        len(text) - len(prompt),
                    )
                )
                done[place] = stop
            for name, token in self.execute(*work).items():
                texts[int(name)].append(token)
        return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
