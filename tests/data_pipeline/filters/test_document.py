import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.filters import document
from data_pipeline.filters.document import BLANK, DIGIT, LETTER, OTHER, Document


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 1,000 U.S. dollars.", ["It's", "1,000", "U.S", ".", "dollars", "."]),
        ("well-known snake_case", ["well", "-", "known", "snake_case"]),
        ("and so... on", ["and", "so", "...", "on"]),
        ("中文abc字", ["中", "文", "abc", "字"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("cafe\u0301 \U0001f600\U0001f600", ["cafe\u0301", "\U0001f600", "\U0001f600"]),
        ("สวัสดี", list("สวัสดี")),
        (" \n\t", []),
    ],
)
def test_words(text, words):
    assert Document(text).words.texts == words


def test_words_come_with_their_ids_lengths_and_kinds():
    words = Document("the 12 the ... _ \u4e2d").words
    assert words.ids[0] == words.ids[2] and len(set(words.ids.tolist())) == 5
    assert words.lengths.tolist() == [3, 2, 3, 3, 1, 1]
    assert words.proper.tolist() == [True, True, True, False, True, True]
    assert words.alphabetic.tolist() == [True, False, True, False, False, True]


@given(st.text())
def test_all_that_is_visible_is_in_one_word(text):
    words = Document(text).words
    assert "".join(words.texts) == "".join(character for character in text if not character.isspace())
    assert words.lengths.tolist() == [len(word) for word in words.texts]


def test_forgotten_words_do_not_change_what_is_found(monkeypatch):
    before = Document("a b a c b").words.ids
    monkeypatch.setattr(document, "KNOWN_WORDS", 0)
    after = Document("a b a c b").words.ids
    assert np.array_equal(before[:, None] == before, after[:, None] == after)


def test_classes_of_characters():
    counts = Document("a\u0301\u4e2d 1\u00bd\t\n!\U0001f600\ud800").class_counts
    assert [counts[kind] for kind in (LETTER, DIGIT, BLANK, OTHER)] == [3, 2, 3, 3]


def test_a_text_that_stays_the_same_is_the_same_document():
    one = Document("text")
    assert one.with_text("text") is one
    assert one.with_text("other", {"a": 1}).with_text("third", {"b": 2}).changes == {"a": 1, "b": 2}
