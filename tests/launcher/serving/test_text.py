"""Text of tokens that come one by one; here a token is a byte, so most letters come in parts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.serving.text import TextSoFar


def decode(ids) -> str:
    return bytes(ids).decode("utf-8", "replace")


def handed_out(text: TextSoFar, ids) -> list[str]:
    pieces = []
    for index in ids:
        text.add(index)
        pieces.append(text.take(finished=False))
        if text.stopped:
            break
    text.finish()
    return [*pieces, text.take(finished=True)]


@settings(max_examples=25)
@given(st.binary(max_size=20), st.text(max_size=10))
def test_pieces_add_up_to_the_text_of_all_tokens(ids, prompt):
    text = TextSoFar(decode, list(prompt.encode()), ())
    assert "".join(handed_out(text, ids)) == text.text == decode(ids)


@given(
    st.text(alphabet="ab\u4f60", max_size=20),
    st.lists(st.text(alphabet="ab\u4f60", min_size=1, max_size=3), max_size=3),
)
def test_a_text_ends_before_the_first_stop_string_and_nothing_of_it_was_handed_out(whole, stops):
    text = TextSoFar(decode, [], stops)
    pieces = handed_out(text, whole.encode())
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    begins = [whole[: min(ends)].find(stop) for stop in stops if stop in whole[: min(ends)]] if ends else []
    assert "".join(pieces) == (whole[: min(begins)] if begins else whole)
    assert text.stopped == bool(ends)


def test_what_may_be_the_beginning_of_a_stop_string_is_held_back():
    text = TextSoFar(decode, [], ["END"])
    assert handed_out(text, b"xENx") == ["x", "", "", "ENx", ""]


@pytest.mark.parametrize("letters", ["\u4f60", "\U0001f600"])
def test_a_letter_comes_when_its_last_part_has_come(letters):
    pieces = handed_out(TextSoFar(decode, list(b"before"), ()), letters.encode())
    assert [piece for piece in pieces if piece] == [letters]
