"""Offline use: prompts in, texts out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from engine.checkpoint import checkpoint_directory
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.outputs import EmbeddingOutput, RequestOutput, Sample, make_samples
from engine.sampling_params import Pooling, SamplingParams
from engine.tokenizer import Tokenizer

Prompt: TypeAlias = str | Sequence[int]
Message: TypeAlias = Mapping[str, Any]


class LLM:
    """A model in this process's hands. `options` are EngineConfig's fields; an unknown one is a
    TypeError. Close it with `shutdown`, or use it as a context manager.

        with LLM("HuggingFaceTB/SmolLM2-135M-Instruct", pipeline_parallel_size=2) as llm:
            print(llm.generate("The capital of France is")[0].outputs[0].text)
    """

    def __init__(self, model: str | EngineConfig, **options: Any) -> None:
        """`model` may be a whole config instead, which `options` change."""
        config = EngineConfig(model=model) if isinstance(model, str) else model
        config = replace(config, **options)
        if config.data_parallel_size > 1:
            raise ValueError("data_parallel_size is the server's: python -m engine serve")
        self.config = config
        self.tokenizer = Tokenizer(checkpoint_directory(config.model))
        self._core = EngineCore(config)
        self._numbers = itertools.count()

    @property
    def vocab_size(self) -> int:
        return self._core.shape.vocab_size

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """One output a prompt, in order. A prompt is text or token ids; one for all or one each
        of `sampling_params`. On a terminal a progress bar counts the prompts that are done.

        Raises ValueError for a prompt that cannot run (then none has), EngineDead when a rank
        fails.
        """
        return [job.result() for job in self._run_all(prompts, sampling_params, use_tqdm)]

    def _run_all(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[_Job]:
        batch = _as_batch(prompts)
        jobs = [
            self._job(prompt, params)
            for prompt, params in zip(batch, _each(sampling_params, len(batch)), strict=True)
        ]
        samples = {sample.request.request_id: sample for job in jobs for sample in job.samples}
        try:
            for sample in samples.values():
                self._core.add(sample.request)
            with _bar(len(samples), use_tqdm) as bar:
                self._run(samples, bar.update)
        finally:
            self._core.abort(samples)
        return jobs

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """`generate` for conversations, by the model's chat template: one, or a list of them."""
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations: Any = [messages] if single else messages
        prompts = [self.tokenizer.encode_chat(conversation) for conversation in conversations]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams) -> Generator[str, None, None]:
        """The text of one answer (n=1) as it comes. Closing the iterator ends the answer."""
        (sample,) = self._job(prompt, sampling_params).samples
        request_id = sample.request.request_id
        self._core.add(sample.request)
        try:
            while not sample.ended:
                for output in self._core.step():
                    yield sample.feed(output).text
        finally:
            self._core.abort([request_id])

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling: Pooling = "last",
        *,
        use_tqdm: bool = True,
    ) -> list[EmbeddingOutput]:
        """The prompts' embeddings: the final hidden state of the last token, or their mean."""
        params = SamplingParams(max_tokens=1, temperature=0, pooling=pooling)
        jobs = self._run_all(prompts, params, use_tqdm)
        return [job.samples[0].embedded() for job in jobs]

    def shutdown(self) -> None:
        """End the ranks. Idempotent."""
        self._core.shutdown()

    def _job(self, prompt: Prompt, params: SamplingParams) -> _Job:
        text = prompt if isinstance(prompt, str) else None
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        request_id = str(next(self._numbers))
        return _Job(text, make_samples(request_id, ids, params, self.tokenizer))

    def _run(self, samples: Mapping[str, Sample], done: Callable[[], Any]) -> None:
        while self._core.has_work:
            for output in self._core.step():
                sample = samples[output.request_id]
                sample.feed(output)
                if sample.ended:
                    done()
                    self._core.abort([output.request_id])


def _bar(total: int, wanted: bool) -> Any:
    from tqdm import tqdm  # transformers brings it

    # disable=None: where stderr is no terminal
    return tqdm(total=total, unit="req", desc="Generating", disable=None if wanted else True)


@dataclass(frozen=True)
class _Job:
    """A prompt, as text if it came so, and its samples."""

    text: str | None
    samples: list[Sample]

    def result(self) -> RequestOutput:
        request = self.samples[0].request
        return RequestOutput(
            request_id=request.request_id.rpartition("-")[0],
            prompt=self.text,
            prompt_token_ids=request.prompt_token_ids,
            outputs=tuple(sample.result() for sample in self.samples),
            prompt_logprobs=self.samples[0].prompt_logprobs,
        )


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [cast("Sequence[int]", prompts)]
    return list(cast("Sequence[Prompt]", prompts))


def _each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise ValueError(f"{count} prompts, but {len(params)} sampling parameters")
    return list(params)
