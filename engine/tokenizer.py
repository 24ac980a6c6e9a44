"""Text <-> token ids, by the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

# What apply_chat_template takes for itself. Clients may set two of them; a template of their own
# would run here.
_FREE = frozenset({"add_generation_prompt", "continue_final_message"})


class Tokenizer:
    """Of a checkpoint directory; reads nothing but that directory."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)

    @cached_property
    def _taken(self) -> frozenset[str]:
        rendering = inspect.signature(self._tokenizer.apply_chat_template)
        return frozenset(rendering.parameters) - _FREE

    @property
    def has_chat_template(self) -> bool:
        return self._tokenizer.chat_template is not None

    @property
    def chat_template(self) -> str:
        """The template's text; several of them together. Empty when there is none."""
        template = self._tokenizer.chat_template or ""
        return template if isinstance(template, str) else "\n".join(template.values())

    @property
    def size(self) -> int:
        return len(self._tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """With the special tokens, such as a leading BOS, that the model's prompts begin with.
        Raises ValueError for half a surrogate pair, which is no text."""
        if _is_torn(text):
            raise ValueError("the text holds half of a surrogate pair, which is no character")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def token_text(self, token_id: int) -> str:
        """One token by itself, special ones too."""
        return self.decode([token_id], skip_special_tokens=False)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Messages ({"role", "content"}) as the model was taught to read them, ending where the
        assistant is to speak; `variables` are the template's own. Raises ValueError when the model
        has no chat template, or it cannot put these messages."""
        if not self.has_chat_template:
            raise ValueError("this model has no chat template: use /v1/completions")
        from jinja2 import TemplateError

        given = {"add_generation_prompt": True, **(variables or {})}
        if taken := given.keys() & self._taken:
            raise ValueError(f"{min(taken)} is not a variable of chat templates")
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                tokenize=False,
                **given,
            )
        except (TemplateError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # the template's own raise_exception, or a template that met what it did not expect
            raise ValueError(f"the chat template refused the messages: {error}") from error
        return self.encode(text, add_special_tokens=False)

    def forbidden(self, words: Sequence[str | tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
        """Texts as the token ids that write them, at the start of a text and after a space."""
        found = dict.fromkeys(word for word in words if not isinstance(word, str))
        for word in words:
            if isinstance(word, str):
                for text in (word, f" {word}"):
                    found[tuple(self.encode(text, add_special_tokens=False))] = None
        return tuple(found)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Bytes that are no whole character yet come out as U+FFFD. Raises ValueError for a number
        that no vocabulary holds."""
        try:
            text: str = self._tokenizer.decode(
                list(token_ids),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,  # it unsays text, and eats spaces of code
            )
        except OverflowError as error:
            raise ValueError("the prompt: a token id is in no vocabulary") from error
        return text


def _is_torn(text: str) -> bool:
    return re.search("[\ud800-\udfff]", text) is not None
