"""Gopher's rules: the examples that datatrove tests its own filters with, each border, scripts without blanks, code."""

import inspect

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_pipeline.filters import gopher
from data_pipeline.filters.document import Document, Dropped
from data_pipeline.filters.gopher import gopher_quality, gopher_repetition
from data_pipeline.filters.settings import GopherQuality, GopherRepetition

FRODO = (
    "I wish it need not have happened in my time,' said Frodo. 'So do I,' said Gandalf, 'and so do all who live to "
    "see such times. But that is not for them to decide. All we have to decide is what to do with the time that is "
    "given us.'"
)
OFF = dict.fromkeys(GopherQuality.model_fields.keys() - {"name"})
REPETITION_OFF = dict.fromkeys(GopherRepetition.model_fields.keys() - {"name"})


def quality(text, **settings):
    return reason(gopher_quality(Document(text), GopherQuality(**settings)))


def repetition(text, **settings):
    return reason(gopher_repetition(Document(text), GopherRepetition(**settings)))


def reason(result):
    return result.reason if isinstance(result, Dropped) else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I am too small...", "few_words"),
        ("I am " * 20, "short_words"),
        ("interconnection " * 20, "long_words"),
        ("# comment " * 20, "hashes"),
        ("... comment " * 20, "ellipses"),
        ("the ./!*?<><> apple <?////> orange  ++ interconnection !<>??? have" * 20, "alphabetic_words"),
        (FRODO, None),
    ],
)
def test_quality_says_what_datatrove_says_on_its_examples(text, expected):
    assert quality(text, min_words=10, max_words=1000) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I am your father.\n" * 4, "repeated_lines"),
        ("I am your father.\n\n" * 4, "repeated_paragraphs"),
        (
            "I am groot.\n\nYou are a wizard.\n\nI am your father.\n\n" + f"{'x' * 30}.\n\n" * 2,
            "characters_in_repeated_paragraphs",
        ),
        ("I am groot.\nYou are a wizard.\nI am your father.\n" + f"{'x' * 40}.\n" * 2, "characters_in_repeated_lines"),
        ("I am Frank, I am Frank, I am Frank", "top_2_gram"),
        ("I am Frank, you are Jhon. I am Frank. I am Frank you are Jhon", "top_3_gram"),
        ("I am a solo traveller " * 4 + FRODO, "repeated_5_grams"),
    ],
)
def test_repetition_says_what_datatrove_says_on_its_examples(text, expected):
    assert repetition(text) == expected


@pytest.mark.parametrize(
    ("key", "at_border", "text", "expected"),
    [
        ("min_words", 3, "one two, three", "few_words"),
        ("max_words", 3, "one two, three", "many_words"),
        ("min_mean_word_length", 3.0, "ab abcd !!", "short_words"),
        ("max_mean_word_length", 3.0, "ab abcd !!", "long_words"),
        ("max_symbols_per_word", 0.25, "one # two three", "hashes"),
        ("max_symbols_per_word", 0.25, "one ... two three", "ellipses"),
        ("max_bullet_lines", 0.5, " - one\ntwo", "bullet_lines"),
        ("max_ellipsis_lines", 0.5, "one\u2026 \ntwo", "ellipsis_lines"),
        ("min_alphabetic_words", 0.5, "one 2 three !", "alphabetic_words"),
        ("min_stop_words", 2, "the cat of cats", "stop_words"),
    ],
)
def test_a_document_at_a_threshold_stays_and_one_beyond_it_is_dropped(key, at_border, text, expected):
    beyond = 1 if isinstance(at_border, int) else 0.01
    beyond = at_border + beyond if key.startswith("min") else at_border - beyond
    assert quality(text, **{**OFF, key: at_border}) is None
    assert quality(text, **{**OFF, key: beyond}) == expected


@pytest.mark.parametrize(
    ("key", "share", "text", "expected"),
    [
        ("max_repeated_lines", 1 / 4, "a\nb\nc\na", "repeated_lines"),
        ("max_repeated_paragraphs", 1 / 4, "a\n\nb\n\nc\n\na", "repeated_paragraphs"),
        ("max_characters_in_repeated_lines", 2 / 8, "aa\nbb\naa", "characters_in_repeated_lines"),
        ("max_characters_in_repeated_paragraphs", 2 / 10, "aa\n\nbb\n\naa", "characters_in_repeated_paragraphs"),
        ("max_top_2_gram", 10 / 14, "aa bb aa bb cc", "top_2_gram"),
        ("max_repeated_5_grams", 5 / 21, "a b c d e f a b c d e", "repeated_5_grams"),
    ],
)
def test_a_repetition_at_a_threshold_stays_and_one_beyond_it_is_dropped(key, share, text, expected):
    assert repetition(text, **{**REPETITION_OFF, key: share}) is None
    assert repetition(text, **{**REPETITION_OFF, key: share - 0.001}) == expected


def test_an_empty_threshold_is_no_rule():
    assert quality("x", **OFF) is None
    assert repetition("x\nx\nx", **REPETITION_OFF) is None


def test_what_has_no_visible_character_has_few_words():
    assert quality(" \n\u3000", **OFF) == "few_words"
    assert repetition(" \n") is None


def test_chinese_is_counted_by_characters_and_repeats_are_found_in_it():
    text = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏"
    assert repetition(text, **{**REPETITION_OFF, "max_repeated_5_grams": 0.1}) is None
    assert repetition(text + text, **{**REPETITION_OFF, "max_repeated_5_grams": 0.1}) == "repeated_5_grams"
    assert quality(text * 3) == "short_words"
    assert quality(text * 3, min_mean_word_length=None, min_stop_words=None) is None


def test_program_code_is_no_prose():
    assert quality(inspect.getsource(gopher)) in ("alphabetic_words", "short_words")


@given(
    st.lists(st.sampled_from(["a", "bb", "the", "c,", "\u4e2d\u6587", "\n"]), min_size=1, max_size=60),
    st.integers(2, 10),
)
def test_words_in_a_row_are_those_counted_one_by_one(parts, n):
    document = Document(" ".join(parts))
    texts = document.words.texts
    ends = [0]
    for text in texts:
        ends.append(ends[-1] + len(text))
    rows = [tuple(texts[start : start + n]) for start in range(len(texts) - n + 1)]
    seen, characters, start = set(), 0, 0
    while start < len(rows):
        if rows[start] in seen:
            characters += ends[start + n] - ends[start]
            start += n
        else:
            seen.add(rows[start])
            start += 1
    top = max(rows, key=lambda row: (rows.count(row), -rows.index(row)), default=())
    expected = {
        "top": rows.count(top) * len(" ".join(top)) / len(document.text),
        "repeated": characters / len(document.text),
    }
    key, share = (f"max_top_{n}_gram", expected["top"]) if n < 5 else (f"max_repeated_{n}_grams", expected["repeated"])
    assume(share <= 1)  # blanks between words count, even where there are none
    assert repetition(document.text, **{**REPETITION_OFF, key: share}) is None
    if share > 0.001:
        assert repetition(document.text, **{**REPETITION_OFF, key: share - 0.001}) is not None
