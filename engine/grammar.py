"""Grammars as masks over the vocabulary, by llguidance: an optional package, asked for when a
request brings a grammar. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint import checkpoint_directory
from engine.sampling_params import Grammar

MISSING = (
    "structured output needs the package llguidance, which is not installed where the engine runs "
    "(pip install llguidance)"
)


def check(grammar: Grammar) -> None:
    """Raises ValueError for a grammar that cannot be followed, or when llguidance is missing."""
    library = _llguidance()
    if problem := library.LLMatcher.validate_grammar(_source(grammar)):
        what = "the JSON schema" if grammar.kind == "json_schema" else "the regular expression"
        raise ValueError(f"{what} cannot be followed: {' '.join(problem.split())}")


class Matcher:
    """One answer on its way through its grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> NDArray[np.bool_]:
        """[vocab]: which token may come next. Only the ends of sequence when all is said, or when
        llguidance has given up: `failure` then says why."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(packed, bitorder="little", count=self._vocab_size).astype(bool)

    def accept(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if not self._matcher.is_stopped():
                self._matcher.consume_token(token_id)

    @property
    def failure(self) -> str | None:
        return self._matcher.get_error() or None


class Grammars:
    """Makes Matchers for one checkpoint's vocabulary, which is read when the first one is made."""

    def __init__(self, model: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)

    def matcher(self, grammar: Grammar) -> Matcher:
        """Raises ValueError for a grammar that `check` would refuse."""
        matcher = _llguidance().LLMatcher(self._tokenizer, _source(grammar))
        if matcher.is_error():
            raise ValueError(f"the grammar cannot be followed: {matcher.get_error()}")
        return Matcher(matcher, self._vocab_size)

    @cached_property
    def _tokenizer(self) -> Any:
        from llguidance.hf import from_tokenizer
        from transformers import AutoTokenizer

        directory = checkpoint_directory(self._model)
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        ends = self._eos_token_ids or None
        return from_tokenizer(tokenizer, n_vocab=self._vocab_size, eos_token=ends)


def _source(grammar: Grammar) -> str:
    """The grammar as llguidance reads it. Raises ValueError for text that is no JSON object."""
    matcher = _llguidance().LLMatcher
    source: str
    if grammar.kind == "regex":
        source = matcher.grammar_from_regex(grammar.text)
    else:  # no free spaces: a model could write them for ever
        compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        source = matcher.grammar_from_json_schema(_object(grammar.text), overrides=compact)
    return source


def _object(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the JSON schema is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError("the JSON schema is no JSON object")
    return schema


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ValueError(MISSING) from error
    return llguidance
