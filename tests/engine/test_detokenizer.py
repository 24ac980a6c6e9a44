"""Text from tokens: never wrong, never late without a reason, whatever bytes the tokens are."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from engine.detokenizer import Detokenizer, StopMatcher
from engine.outputs import Sample
from engine.request import Output, Request
from engine.sampling_params import SamplingParams


def bytes_to_text(ids: Sequence[int]) -> str:
    """One token a byte, as a byte-level tokenizer decodes them."""
    return bytes(ids).decode("utf-8", "replace")


def words_to_text(ids: Sequence[int]) -> str:
    """A token is a word with its leading space, which the first one of a text loses."""
    return "".join(f" w{number}" for number in ids)[1:]


def pieces(decode: object, ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(decode)  # type: ignore[arg-type]
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(st.text(max_size=30))
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(pieces(bytes_to_text, text.encode())) == text


@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_join_to_what_decoding_them_at_once_gives(data: bytes) -> None:
    assert "".join(pieces(bytes_to_text, data)) == bytes_to_text(data)


@given(st.lists(st.integers(0, 9), max_size=20))
def test_spaces_between_words_survive(ids: list[int]) -> None:
    assert "".join(pieces(words_to_text, ids)) == words_to_text(ids)


def test_a_character_comes_out_when_its_last_byte_has_come() -> None:
    assert pieces(bytes_to_text, "a€b".encode()) == ["a", "", "", "€", "b", ""]


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    assert pieces(bytes_to_text, b"a\xe2\x82") == ["a", "", "", "\ufffd"]


def matched(stops: Sequence[str], parts: Sequence[str]) -> tuple[str, str | None]:
    matcher, text = StopMatcher(stops), ""
    for part in parts:
        safe, stop = matcher.push(part)
        text += safe
        if stop is not None:
            return text, stop
    return text + matcher.flush(), None


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3), st.text("ab"))
def test_a_stop_string_is_found_across_pieces(stops: list[str], text: str) -> None:
    found = matched(stops, list(text))
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert found == (text, None)
    else:
        before, stop = found
        assert stop in stops
        assert text.startswith(before + stop)
        assert len(before + stop) == min(ends)


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("the E") == ("the ", None)
    assert matcher.push("N") == ("", None)
    assert matcher.push("TRY") == ("ENTRY", None)
    assert matcher.push("END of") == ("", "END")


def sample(**sampling: object) -> Sample:
    params = SamplingParams(**sampling)  # type: ignore[arg-type]
    return Sample(0, Request("r", (1,), params), bytes_to_text)


def feed(one: Sample, text: str, end: Output | None = None) -> None:
    for byte in text.encode():
        if not one.ended:
            one.feed(Output("r", byte))
    if end is not None and not one.ended:
        one.feed(end)


def test_a_stop_string_ends_the_sample_and_is_not_in_its_text() -> None:
    one = sample(stop=("lo w",))
    feed(one, "hello world")
    result = one.result()
    assert (result.text, result.finish_reason, result.stop_reason) == ("hel", "stop", "lo w")
    assert bytes_to_text(result.token_ids) == "hello w"


def test_a_stop_token_is_counted_but_not_said() -> None:
    one = sample(stop_token_ids=(33,))
    feed(one, "hi", Output("r", 33, "stop", 33))
    result = one.result()
    assert (result.text, result.stop_reason, one.num_tokens) == ("hi", 33, 3)


def test_the_end_of_sequence_has_no_stop_reason() -> None:
    one = sample()
    feed(one, "hi", Output("r", 2, "stop", 2))
    assert (one.result().text, one.result().stop_reason) == ("hi", None)


def test_what_was_held_back_comes_out_when_the_sample_ends() -> None:
    one = sample(stop=("lower",))
    feed(one, "hel", Output("r", ord("l"), "length"))
    assert (one.result().text, one.result().finish_reason) == ("hell", "length")


def test_a_stop_string_in_the_very_last_bytes_is_found() -> None:
    one = sample(stop=("\ufffd",))
    feed(one, "a", Output("r", 0xE2, "length"))
    assert (one.result().text, one.result().finish_reason) == ("a", "stop")


def test_stop_strings_are_not_looked_for_before_min_tokens() -> None:
    one = sample(stop=("a",), min_tokens=2)
    feed(one, "abab")
    assert (one.result().text, one.num_tokens) == ("ab", 3)


def test_a_stop_string_alone_is_one_stop_string() -> None:
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]
