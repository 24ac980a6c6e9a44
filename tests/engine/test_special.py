"""What a request may ask of the sampler beyond temperature, top_k, top_p and min_p."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.grammar import Grammars, check
from engine.layers.special import SpecialRequests, token_logprobs
from engine.llm import LLM
from engine.outputs import RequestOutput
from engine.sampling_params import Grammar, SamplingParams
from engine.step import Introduction, Step
from tests.engine.conftest import MakeCheckpoint

EOS = 1
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"enum": ["small", "large"]},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
}


def asked(
    output: tuple[int, ...] = (), prompt: tuple[int, ...] = (4,), **sampling: Any
) -> SpecialRequests:
    """The ranks' memory, holding one request "r"."""
    requests = SpecialRequests([EOS], Grammars("/nowhere", 6, [EOS]))
    requests.begin(Step(0, (), (Introduction("r", prompt, output, SamplingParams(**sampling)),)))
    return requests


def adjusted(output: tuple[int, ...] = (), **sampling: Any) -> list[float]:
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.5, 3.0, 0.0]])
    asked(output, **sampling).adjust(logits, ["r"])
    return logits[0].tolist()


OUT = float("-inf")


@pytest.mark.parametrize(
    ("output", "sampling", "expected"),
    [
        ((), {"logit_bias": {0: 5, 2: -1}}, [6.0, 2.0, -2.0, 0.5, 3.0, 0.0]),
        ((2, 2, 3), {"presence_penalty": 0.5}, [1.0, 2.0, -1.5, 0.0, 3.0, 0.0]),
        ((2, 2, 3), {"frequency_penalty": 0.5}, [1.0, 2.0, -2.0, 0.0, 3.0, 0.0]),
        ((2, 0), {"repetition_penalty": 2.0}, [0.5, 2.0, -2.0, 0.5, 1.5, 0.0]),
        ((5,), {"min_tokens": 2, "stop_token_ids": (4,)}, [1.0, OUT, -1.0, 0.5, OUT, 0.0]),
        ((5, 5), {"min_tokens": 2, "stop_token_ids": (4,)}, [1.0, 2.0, -1.0, 0.5, 3.0, 0.0]),
        ((2,), {"bad_words": ((2, 3), (4,))}, [1.0, 2.0, -1.0, OUT, OUT, 0.0]),
        ((3,), {"bad_words": ((2, 3), (0, 1, 2))}, [1.0, 2.0, -1.0, 0.5, 3.0, 0.0]),
        ((), {"bad_words": tuple((one,) for one in range(6))}, [0.0] * 6),
    ],
)
def test_logits_are_changed_as_asked(
    output: tuple[int, ...], sampling: dict[str, Any], expected: list[float]
) -> None:
    assert adjusted(output, **sampling) == expected


def test_penalties_follow_the_tokens_that_are_chosen() -> None:
    requests = asked(frequency_penalty=1.0)
    for expected in (0.0, -1.0, -2.0):
        logits = torch.zeros(1, 6)
        requests.adjust(logits, ["r"])
        assert logits[0, 3] == expected
        requests.details(["r"], [3])


def test_what_has_ended_is_forgotten_and_what_comes_again_replaces_it() -> None:
    requests = asked((2,), presence_penalty=1.0)
    again = Introduction("r", (4,), (3,), SamplingParams(presence_penalty=1.0))
    requests.begin(Step(1, (), (again,)))
    logits = torch.zeros(1, 6)
    requests.adjust(logits, ["r"])
    assert logits[0].tolist() == [0, 0, 0, -1, 0, 0]
    requests.begin(Step(2, (), (), ("r", "never seen")))
    logits = torch.zeros(1, 6)
    requests.adjust(logits, ["r"])
    assert logits[0].tolist() == [0] * 6


def test_logprobs_are_those_before_any_change() -> None:
    requests = asked(logprobs=2, logit_bias={3: 100})
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.5, 3.0, 0.0]])
    expected = logits.log_softmax(-1)[0].tolist()
    requests.adjust(logits, ["r"])
    logprobs = requests.details(["r"], [3])["r"].logprobs
    assert logprobs is not None
    assert logprobs.rank == 4
    assert logprobs.logprob == pytest.approx(expected[3])
    assert [token for token, _ in logprobs.top] == [4, 1]
    assert [value for _, value in logprobs.top] == pytest.approx([expected[4], expected[1]])


def test_no_alternatives_are_the_tokens_own_logprob_alone() -> None:
    (one,) = token_logprobs(torch.zeros(4), [2], 0)
    assert (one.top, one.rank) == ((), 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"presence_penalty": 3}, r"presence_penalty must be in \[-2, 2\], got 3"),
        ({"frequency_penalty": -2.5}, "frequency_penalty must be in"),
        ({"repetition_penalty": 0}, r"repetition_penalty must be in \[0.01, 100\], got 0"),
        ({"logit_bias": {4: 101}}, r"logit_bias must be in \[-100, 100\], got 101 for 4"),
        ({"logprobs": 21}, r"logprobs must be in \[0, 20\], got 21"),
        ({"prompt_logprobs": -1}, "prompt_logprobs must be in"),
        ({"bad_words": ("",)}, "bad_words must not hold an empty word"),
        ({"min_p": float("nan")}, "min_p must be in"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**wrong)


def test_lists_and_none_are_taken_as_vllm_takes_them() -> None:
    lists: dict[str, Any] = {"stop": ["a"], "stop_token_ids": [3], "bad_words": None}
    assert SamplingParams(**lists) == SamplingParams(stop=("a",), stop_token_ids=(3,))
    assert not SamplingParams(**lists).special


def test_only_what_the_plain_sampler_cannot_do_is_special() -> None:
    assert not SamplingParams(temperature=0.3, top_k=3, top_p=0.4, min_p=0.1, seed=4).special
    for one in ({"min_tokens": 1}, {"logprobs": 0}, {"logit_bias": {1: 2}}, {"pooling": "last"}):
        assert SamplingParams(**one).special  # type: ignore[arg-type]


# With a real model.


@pytest.fixture(scope="module")
def llm(checkpoint: MakeCheckpoint) -> Iterator[LLM]:
    options: dict[str, Any] = {"max_num_batched_tokens": 8, "max_num_seqs": 8}
    with LLM(str(checkpoint()), dtype="float32", device="cpu", **options) as llm:
        yield llm


def generate(llm: LLM, prompt: Any, **sampling: Any) -> RequestOutput:
    return llm.generate(prompt, SamplingParams(**{"temperature": 0, **sampling}))[0]


def reference(llm: LLM, ids: list[int]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(llm.config.model, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([ids]), output_hidden_states=True)


def test_logprobs_of_prompt_and_answer_are_transformers(llm: LLM) -> None:
    """The prompt, 21 tokens, is read in chunks of 8."""
    made = generate(llm, "what comes before this", max_tokens=4, logprobs=3, prompt_logprobs=2)
    prompt, answer = list(made.prompt_token_ids), list(made.outputs[0].token_ids)
    expected = reference(llm, prompt + answer).logits[0].log_softmax(-1)
    own = [expected[i, token].item() for i, token in enumerate((prompt + answer)[1:])]
    assert made.prompt_logprobs is not None
    assert made.prompt_logprobs[0] is None
    found = [*made.prompt_logprobs[1:], *(made.outputs[0].logprobs or ())]
    assert [one.logprob for one in found if one] == pytest.approx(own, abs=1e-3)
    best = [expected[i].argmax().item() for i in range(len(own))]
    assert [one.top[0][0] for one in found if one] == best
    assert {len(one.top) for one in found[-4:] if one} == {3}


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_are_transformers(llm: LLM, pooling: str) -> None:
    made = generate(llm, "what comes before this", max_tokens=1, logprobs=0)
    assert llm.embed("x")[0].embedding != llm.embed("y")[0].embedding
    (embedded,) = llm.embed("what comes before this", pooling=pooling)  # type: ignore[arg-type]
    hidden = reference(llm, list(made.prompt_token_ids)).hidden_states[-1][0]
    expected = hidden[-1] if pooling == "last" else hidden.mean(0)
    expected = torch.nn.functional.normalize(expected, dim=0)
    np.testing.assert_allclose(embedded.embedding, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_is_followed_whatever_the_model_likes(llm: LLM, seed: int) -> None:
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    made = generate(llm, "x", temperature=1.5, seed=seed, max_tokens=200, grammar=grammar)
    said = json.loads(made.outputs[0].text)
    assert said.keys() == {"name", "size"}
    assert said["size"] in ("small", "large")
    assert made.outputs[0].finish_reason == "stop"


def test_a_regular_expression_is_followed_beside_requests_without_one(llm: LLM) -> None:
    free = SamplingParams(temperature=0, max_tokens=9)
    bound = SamplingParams(
        temperature=1, seed=5, max_tokens=30, grammar=Grammar("regex", "[ab]{3}-[0-9]{2,4}")
    )
    alone = llm.generate("x", free)[0].outputs[0].text
    both = llm.generate(["x", "x"], [free, bound])
    assert both[0].outputs[0].text == alone
    assert re.fullmatch("[ab]{3}-[0-9]{2,4}", both[1].outputs[0].text)


def test_a_grammar_outlives_what_forbids_its_end(llm: LLM) -> None:
    """min_tokens and ignore_eos leave nothing else to say: the end of sequence, again and again."""
    grammar = Grammar("regex", "ab")
    made = generate(llm, "x", grammar=grammar, min_tokens=5, ignore_eos=True, max_tokens=6)
    assert made.outputs[0].text == "ab"


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("regex", "(a"), "the regular expression cannot be followed: .*unclosed group"),
        (Grammar("json_schema", '{"type": "obj"}'), "the JSON schema cannot be .* type: obj"),
        (Grammar("json_schema", "[]"), "the JSON schema is no JSON object"),
        (Grammar("json_schema", "nope"), "the JSON schema is no JSON: Expecting value"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused(grammar: Grammar, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(grammar)


def test_special_requests_survive_preemption(checkpoint: MakeCheckpoint) -> None:
    """What the ranks remember is told to them again."""
    params = [
        SamplingParams(
            temperature=1, seed=seed, max_tokens=60, presence_penalty=1.5, bad_words=("e",)
        )
        for seed in range(4)
    ]
    texts = []
    for kv_bytes in (8 << 20, 30 * 16384):  # 500 blocks of 16 tokens, or 30
        options: dict[str, Any] = {"kv_cache_memory_bytes": kv_bytes, "max_model_len": 300}
        with LLM(str(checkpoint()), dtype="float32", device="cpu", **options) as llm:
            made = llm.generate(["x" * 100] * 4, params)
            texts.append([one.outputs[0].text for one in made])
    assert texts[0] == texts[1]
    assert not any("e" in text for text in texts[0])


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2)])
def test_every_cut_tells_the_same(llm: LLM, checkpoint: MakeCheckpoint, tp: int, pp: int) -> None:
    """Prompt log-probabilities and embeddings are computed by all ranks of the last stage."""
    options: dict[str, Any] = {
        "tensor_parallel_size": tp,
        "pipeline_parallel_size": pp,
        "distributed_executor_backend": "inproc",
        "max_num_batched_tokens": 8,
        "max_num_seqs": 8,
    }
    prompt = "what comes before this"
    asked: dict[str, Any] = {"max_tokens": 6, "logprobs": 2, "prompt_logprobs": 1}
    grammar = Grammar("regex", "[ab]{6}")
    with LLM(str(checkpoint()), dtype="float32", device="cpu", **options) as cut:
        made, expected = generate(cut, prompt, **asked), generate(llm, prompt, **asked)
        assert made.outputs[0].token_ids == expected.outputs[0].token_ids
        assert own(made) == pytest.approx(own(expected), abs=1e-4)
        (embedded,), whole = cut.embed(prompt, "mean"), llm.embed(prompt, "mean")[0]
        np.testing.assert_allclose(embedded.embedding, whole.embedding, atol=1e-4)
        bound = [generate(one, prompt, grammar=grammar).outputs[0].text for one in (cut, llm)]
        assert bound[0] == bound[1]


def own(made: RequestOutput) -> list[float]:
    told = [*(made.prompt_logprobs or ()), *(made.outputs[0].logprobs or ())]
    return [one.logprob for one in told if one is not None]


def test_without_llguidance_the_fix_is_named() -> None:
    script = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from engine.grammar import check\n"
        "from engine.sampling_params import Grammar\n"
        "try: check(Grammar('regex', 'a'))\n"
        "except ValueError as error: print(error)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pip install llguidance" in done.stdout
