"""Offline use, with a real (small, random) model in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engine import LLM, SamplingParams
from tests.engine.conftest import MakeCheckpoint

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def llm(checkpoint: MakeCheckpoint) -> Iterator[LLM]:
    model = str(checkpoint())
    with LLM(model, dtype="float32", device="cpu", kv_cache_memory_bytes=8 << 20) as llm:
        yield llm


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = ["hello", "a somewhat longer prompt", "x"]
    together = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in together] == prompts
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert [o.outputs for o in together] == [o.outputs for o in alone]
    assert {o.outputs[0].finish_reason for o in together} == {"length"}
    assert {len(o.outputs[0].token_ids) for o in together} == {8}


def test_token_ids_are_a_prompt_too(llm: LLM) -> None:
    ids = llm.tokenizer.encode("hello")
    by_text, by_ids, by_list = (
        llm.generate("hello", GREEDY),
        llm.generate(ids, GREEDY),
        llm.generate([ids], GREEDY),
    )
    assert by_text[0].outputs == by_ids[0].outputs == by_list[0].outputs
    assert by_ids[0].prompt is None
    assert by_ids[0].prompt_token_ids == by_text[0].prompt_token_ids == tuple(ids)


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n) for n in (1, 3)]
    lengths = [len(o.outputs[0].token_ids) for o in llm.generate(["a", "b"], params)]
    assert lengths == [1, 3]
    with pytest.raises(ValueError, match="1 prompts, but 2 sampling parameters"):
        llm.generate("a", params)


def test_n_samples_differ_and_a_seed_repeats_them(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=12)
    first, second = llm.generate("hello", params), llm.generate("hello", params)
    assert [sample.index for sample in first[0].outputs] == [0, 1, 2]
    assert len({sample.text for sample in first[0].outputs}) == 3
    assert first[0].outputs == second[0].outputs


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    whole = llm.generate("hello", GREEDY)[0].outputs[0].text
    stop = whole[2:4]
    params = SamplingParams(temperature=0, max_tokens=8, stop=(stop,))
    (output,) = llm.generate("hello", params)[0].outputs
    assert (output.text, output.finish_reason, output.stop_reason) == (
        whole[: whole.index(stop)],
        "stop",
        stop,
    )


def test_chat_is_generate_through_the_models_template(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "hi"}]
    chat = llm.chat(conversation, GREEDY)
    prompt = llm.tokenizer.encode_chat(conversation)
    assert chat[0].outputs == llm.generate(prompt, GREEDY)[0].outputs
    assert len(llm.chat([conversation, conversation], GREEDY)) == 2


def test_one_bad_prompt_refuses_the_call_and_leaves_nothing_running(llm: LLM) -> None:
    with pytest.raises(ValueError, match="maximum context length"):
        llm.generate(["fine", "x" * 600], GREEDY)
    assert not llm._core.has_work
    assert len(llm.generate("fine", GREEDY)) == 1


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="tensor_paralel_size"):
        LLM("anything", tensor_paralel_size=2)


def test_nothing_is_generated_from_nothing(llm: LLM) -> None:
    assert llm.generate([]) == []


@pytest.mark.parametrize("cut", [{}, {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}])
def test_looking_ahead_and_sharing_prefixes_change_no_token(
    checkpoint: MakeCheckpoint, cut: dict[str, int]
) -> None:
    """Sampled, with equal beginnings, and a cache so small that requests are preempted."""
    model = str(checkpoint())
    sampling = SamplingParams(temperature=0.8, seed=3, max_tokens=24, ignore_eos=True)
    prompts = [[*range(5, 45), last] for last in range(60, 72)]
    base: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
    with LLM(model, enable_prefix_caching=False, **base) as llm:
        expected = [list(o.outputs[0].token_ids) for o in llm.generate(prompts, sampling)]
    small = {
        **base,
        **cut,
        "distributed_executor_backend": "inproc",
        "kv_cache_memory_bytes": 20 * 16384 // max(cut.values(), default=1),
        "max_model_len": 128,
        "max_num_batched_tokens": 64,
    }
    with LLM(model, async_scheduling=True, **small) as llm:
        for _ in range(2):
            outputs = llm.generate(prompts, sampling)
            assert [list(o.outputs[0].token_ids) for o in outputs] == expected
        assert llm._core._scheduler.num_preempted > 0
