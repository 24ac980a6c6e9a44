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

    @property
    def chat_template(self) -> str:
        """The template's text; several of them together. Empty when there is none."""
        template = self._tokenizer.chat_template or ""
        return template if isinstance(template, str) else "\n".join(template.values())

    @property
    def size(self) -> int:
        return len(self._tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """With the special tokens, such as a leading BOS, that the model's prompts begin with."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def token_text(self, token_id: int) -> str:
        """One token by itself, special ones too."""
        return self.decode([token_id], skip_special_tokens=False)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Messages ({"role", "content"}) as the model was taught to read them, ending where the
        assistant is to speak; `variables` are the template's own. Raises ValueError when the model
        has no chat template, or it cannot put these messages."""
        if not self.has_chat_template:
            raise ValueError("this model has no chat template: use /v1/completions")
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                tokenize=False,
                **{"add_generation_prompt": True, **variables},
            )
        except (TemplateError, TypeError, LookupError, AttributeError) as error:
            # the template's own raise_exception, or a template that met what it did not expect
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
