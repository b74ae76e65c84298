"""Rules on lines: C4's and FineWeb's, on the examples that datatrove tests its own filters with, and at each border."""

import pytest

from data_pipeline.filters.c4 import c4
from data_pipeline.filters.document import Document, Dropped
from data_pipeline.filters.fineweb import TERMINALS, fineweb
from data_pipeline.filters.settings import C4, FineWeb

GOOD = (
    "This is a well-written paragraph with several sentences.\n"
    "The content continues with more good information here.\n"
    "Another important point is being made in this line.\n"
    "We can see that this document has quality content.\n"
    "Finally, the conclusion wraps everything up nicely.\n"
    "An additional sentence to ensure we pass the threshold."
)
REST = (
    "Another sentence with proper punctuation.\nMore content to fill out the document.\n"
    "Even more content is needed to pass the check.\nThe final sentence of the document."
)
FINEWEB_OFF = dict.fromkeys(FineWeb.model_fields.keys() - {"name", "short_line"})


def through_c4(text, **settings):
    """The text that is left, or the reason."""
    result = c4(Document(text), C4(**settings))
    return result if isinstance(result, Dropped) else result.text


def through_fineweb(text, **settings):
    result = fineweb(Document(text), FineWeb(**settings))
    return result.reason if isinstance(result, Dropped) else None


def test_c4_says_what_datatrove_says_on_its_examples():
    assert through_c4(GOOD) == GOOD
    assert through_c4(f"This is a sentence with lorem ipsum dolor sit amet.\n{REST}") == Dropped("lorem_ipsum")
    assert through_c4(f"This is some code with a {{ bracket.\n{REST}") == Dropped("curly_bracket")
    assert through_c4("Just one sentence.") == Dropped("few_sentences")
    text = "This site uses cookies for tracking.\nAnother valid line here today."
    assert through_c4(text, min_sentences=None, min_words_per_line=None) == "Another valid line here today."


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("Two words.", ""),
        ("There are three.", "There are three."),
        ("There is no end", ""),
        ("This goes on...", ""),
        ('She said "no."', 'She said "no."'),
        ("Enable Javascript to go on.", ""),
        ("A fact of old.[12]", "A fact of old."),
        ("  Blanks around it.  ", "Blanks around it."),
        (f"A {'x' * 1000} word.", f"A {'x' * 1000} word."),
        (f"A {'x' * 1001} word.", ""),
    ],
)
def test_c4_keeps_lines_that_are_sentences(line, left):
    assert through_c4(f"First it is this.\n{line}", min_sentences=None) == f"First it is this.\n{left}".strip()


def test_c4_drops_a_page_only_for_what_stands_in_lines_that_stay():
    assert through_c4("a { b\nlorem ipsum\nThis is a line.", min_sentences=None) == "This is a line."
    assert through_c4("This is { it.", min_sentences=None, curly_brackets=False) == "This is { it."


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two is here! Is three here?", 3),
        ("J. R. R. Tolkien wrote it. So he did.", 2),
        ('He said "stop." Then he went.', 2),
        ("A list\nthat goes on.", 1),
    ],
)
def test_c4_counts_sentences(text, sentences):
    settings = {"terminal_punctuation": True, "min_words_per_line": None}
    assert through_c4(text, min_sentences=sentences, **settings) != Dropped("few_sentences")
    assert through_c4(text, min_sentences=sentences + 1, **settings) == Dropped("few_sentences")


def test_fineweb_says_what_datatrove_says_on_its_examples():
    assert through_fineweb("") == "empty"
    assert through_fineweb("No punctuation here\nAnother line without any\nStill nothing") == "punctuated_lines"
    short = {"max_short_lines": 0.5, "min_punctuated_lines": 0}
    assert through_fineweb("hi.\nbye.\nok.\nno.\nyes.", **short) == "short_lines"
    assert through_fineweb(GOOD, max_line_feeds_per_word=0.3, max_characters_in_repeated_lines=0.01) is None
    assert through_fineweb("\n".join(["a"] * 50), max_line_feeds_per_word=0.1) == "punctuated_lines"


@pytest.mark.parametrize(
    ("key", "at_border", "text", "expected"),
    [
        ("min_punctuated_lines", 0.5, "one.\n\n \ntwo", "punctuated_lines"),
        ("max_short_lines", 0.5, f"{'x' * 30}\n{'x' * 31}", "short_lines"),
        ("max_characters_in_repeated_lines", 0.25, "ab\nab\ncdef", "repeated_lines"),
        ("max_line_feeds_per_word", 0.5, "one\ntwo", "list"),
    ],
)
def test_a_document_at_a_threshold_stays_and_one_beyond_it_is_dropped(key, at_border, text, expected):
    beyond = at_border + 0.01 if key.startswith("min") else at_border - 0.01
    assert through_fineweb(text, **{**FINEWEB_OFF, key: at_border}) is None
    assert through_fineweb(text, **{**FINEWEB_OFF, key: beyond}) == expected


def test_lines_may_end_in_the_sentence_marks_of_any_script():
    assert {".", "!", "?", "\u3002", "\uff01", "\u061f", "\u0964", "\u1362"} <= TERMINALS
    assert not {'"', ",", ":", ")", "a"} & TERMINALS
