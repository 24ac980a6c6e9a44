"""Text <-> token ids, by the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Tokenizer:
    """Of a checkpoint directory; reads nothing but that directory."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)

    @property
    def has_chat_template(self) -> bool:
        return self._tokenizer.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """With the special tokens, such as a leading BOS, that the model's prompts begin with."""
        ids: list[int] = self._tokenizer.encode(text)
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Messages ({"role", "content"}) as the model was taught to read them, ending where the
        assistant is to speak. Raises ValueError when the model has no chat template."""
        if not self.has_chat_template:
            raise ValueError("this model has no chat template: use /v1/completions")
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:  # the template's own raise_exception
            raise ValueError(f"the chat template refused the messages: {error}") from error
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def forbidden(self, words: Sequence[str | tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
        """Texts as the token ids that write them, at the start of a text and after a space."""
        found = dict.fromkeys(word for word in words if not isinstance(word, str))
        for word in words:
            if isinstance(word, str):
                for text in (word, f" {word}"):
                    found[tuple(self._tokenizer.encode(text, add_special_tokens=False))] = None
        return tuple(found)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Bytes that are no whole character yet come out as U+FFFD."""
        text: str = self._tokenizer.decode(
            list(token_ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,  # it unsays text, and eats spaces of code
        )
        return text
