from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest

from engine.tokenizer import Tokenizer
from tests.engine.conftest import MakeCheckpoint

TEXT = "Hello, wörld 123 🎉"


def test_text_survives_the_round_trip(checkpoint: MakeCheckpoint) -> None:
    tokenizer = Tokenizer(checkpoint())
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_half_a_character_is_a_replacement(checkpoint: MakeCheckpoint) -> None:
    tokenizer = Tokenizer(checkpoint())
    assert tokenizer.decode(tokenizer.encode("ö")[:1]) == "\ufffd"


def test_a_chat_ends_where_the_assistant_is_to_speak(checkpoint: MakeCheckpoint) -> None:
    tokenizer = Tokenizer(checkpoint())
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(ids) == "user: Hi\nassistant: "


def test_special_tokens_are_left_out_unless_asked_for(checkpoint: MakeCheckpoint) -> None:
    tokenizer = Tokenizer(checkpoint())
    ids = [*tokenizer.encode("Hi"), 1]
    assert tokenizer.decode(ids) == "Hi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "Hi</s>"


def test_a_model_without_a_chat_template_says_so(
    checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    directory = copytree(checkpoint(), tmp_path / "plain")
    (directory / "chat_template.jinja").unlink()
    config = json.loads((directory / "tokenizer_config.json").read_text())
    assert "chat_template" not in config
    tokenizer = Tokenizer(directory)
    assert not tokenizer.has_chat_template
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "Hi"}])


def test_messages_that_the_template_refuses_are_the_callers_mistake(
    checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    directory = copytree(checkpoint(), tmp_path / "strict")
    template = directory / "chat_template.jinja"
    template.write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="refused the messages: roles must alternate"):
        Tokenizer(directory).encode_chat([{"role": "user", "content": "Hi"}])
