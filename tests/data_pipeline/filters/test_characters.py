import pytest

from data_pipeline.filters.characters import characters
from data_pipeline.filters.document import Document, Dropped
from data_pipeline.filters.settings import Characters

OFF = dict.fromkeys(Characters.model_fields.keys() - {"name"})


def reason(text, **settings):
    result = characters(Document(text), Characters(**settings))
    return result.reason if isinstance(result, Dropped) else None


@pytest.mark.parametrize(
    ("key", "at_border", "text", "expected"),
    [
        ("min_length", 3, "a b", "short"),
        ("max_length", 3, "a b", "long"),
        ("min_letters", 0.5, "a \u4e2d 1 !", "letters"),
        ("max_digits", 0.5, "a \u4e2d 1 \u0662", "digits"),
        ("max_symbols", 0.5, "a 1 ! \U0001f600", "symbols"),
        ("max_blanks", 0.5, "a b\n", "blanks"),
        ("min_mean_word_length", 2.0, "a abc !!!!", "short_words"),
        ("max_mean_word_length", 2.0, "a abc !!!!", "long_words"),
    ],
)
def test_a_document_at_a_threshold_stays_and_one_beyond_it_is_dropped(key, at_border, text, expected):
    beyond = 1 if isinstance(at_border, int) else 0.01
    beyond = at_border + beyond if key.startswith("min") else at_border - beyond
    assert reason(text, **{**OFF, key: at_border}) is None
    assert reason(text, **{**OFF, key: beyond}) == expected


def test_prose_of_any_script_and_code_pass_and_noise_does_not():
    assert reason("The cat sat on the mat, and it was grey.") is None
    assert reason("天地玄黃\uff0c宇宙洪荒。日月盈昃\uff0c辰宿列張。") is None
    assert reason("def add(first, second):\n    return first + second\n") is None
    assert reason("3.14 2.72 1.41 9.81") == "letters"
    assert reason("|--|--|--|") == "letters"
