"""A Runner that follows a script instead of a model: fast, and able to fail on demand."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import ClassVar

from engine.config import EngineConfig
from engine.parallel import ParallelContext
from engine.shapes import ModelShape
from engine.step import Step, StepResult

SCRIPTED = "tests.engine.scripted_runner:ScriptedRunner"
UNLOADABLE = "tests.engine.scripted_runner:Unloadable"
RAISE = 13  # a prompt that holds this token makes the step raise
VOCAB = 128
MAX_POSITION = 64
EOS = 1


def write_config(directory: Path) -> Path:
    """The config.json of a model that nobody will load."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": VOCAB,
        "max_position_embeddings": MAX_POSITION,
        "eos_token_id": EOS,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


class ScriptedRunner:
    """The n-th token is the n-th letter of the alphabet, in ASCII. `gate` holds every step back
    while it is cleared; `begun` are the requests in the order in which they came (in-process
    ranks only)."""

    gate = threading.Event()
    gate.set()
    begun: ClassVar[list[str]] = []

    def __init__(self, config: EngineConfig, shape: ModelShape, parallel: ParallelContext) -> None:
        self.parallel = parallel
        self.num_blocks = 0

    def load_weights(self) -> None:
        pass

    def measure_kv_blocks(self) -> int:
        return 40 - self.parallel.rank

    def allocate_kv(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks

    def execute(self, step: Step) -> StepResult | None:
        self.gate.wait()
        for request in step.requests:
            if request.request_id not in self.begun:
                self.begun.append(request.request_id)
            if RAISE in request.token_ids:
                raise ArithmeticError("told to")
            assert max(request.blocks) < self.num_blocks
        if self.parallel.tp.rank or not self.parallel.is_last_stage:
            return None
        letters = {r.request_id: ord("a") + r.num_generated % 26 for r in step.requests if r.sample}
        return StepResult(step.step_id, letters)


class Unloadable(ScriptedRunner):
    def load_weights(self) -> None:
        raise OSError("the disk is on fire")
