"""Questions as files and as examples in the form a model was trained on."""

import json

import numpy as np
import pytest

from data_pipeline.config import ObjectiveConfig
from data_pipeline.questions import Question, read_questions
from data_pipeline.reading.ranking import Manner, form_of, ranking
from data_pipeline.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    size=300, bos=1, eos=2, special={"mask": 4, "R": 7, "S": 8}, first_sentinel=20, num_sentinels=4, word_starts=None
)
QUESTIONS = [Question("ab", ("c", "de"), 1), Question("", ("fgh", "i"), 0)]
GOOD = {"query": "Two and two make", "choices": [" four", " five"], "gold": 0}


def encode(text: str) -> np.ndarray:
    """One token per letter: a is 100."""
    return np.array([100 + ord(letter) - ord("a") for letter in text], np.int32)


def rows(name: str, shape: str, **keys):
    manner = Manner.of(ObjectiveConfig(name=name, **keys), shape, VOCABULARY)
    ranked = ranking(QUESTIONS, encode, manner)
    cut = [
        np.split(part.tokens, np.cumsum(part.lengths)[:-1])
        for part in (ranked.examples.inputs, ranked.examples.targets)
    ]
    scored = np.split(ranked.examples.scored, np.cumsum(ranked.examples.targets.lengths)[:-1])
    made = [(a.tolist(), b.tolist(), np.flatnonzero(c).tolist()) for a, b, c in zip(*cut, scored, strict=True)]
    return made, list(zip(ranked.question.tolist(), ranked.choice.tolist(), strict=True))


@pytest.mark.parametrize("name", ["next_token", "prefix_lm"])
def test_a_model_that_continues_texts_is_given_each_choice_after_the_query(name):
    made, owners = rows(name, "causal")
    assert made[:2] == [([1, 100, 101], [102], [0]), ([1, 100, 101], [103, 104], [0, 1])]
    assert made[2] == ([1], [105, 106, 107], [0, 1, 2])
    assert owners == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(("name", "mode"), [("span_corruption", []), ("blank_infilling", []), ("ul2", [8])])
def test_a_model_trained_on_blanks_finds_the_choice_in_a_blank_after_the_query(name, mode):
    made, _ = rows(name, "encdec")
    assert made[1] == ([1, *mode, 100, 101, 20, 2], [20, 103, 104], [1, 2]), "the sentinel itself is not scored"


WITH_MODE, WITHOUT = {"name": "span_corruption", "mode": "R"}, {"name": "blank_infilling"}


@pytest.mark.parametrize(
    ("name", "keys", "mode"),
    [
        ("span_corruption", {"mode": "R"}, [7]),
        ("ul2", {"denoisers": [{"mode": "R", "noise_density": 0.15, "mean_span_length": 3}]}, [7]),
        ("mixture", {"parts": [WITH_MODE, WITHOUT]}, []),
        ("mixture", {"parts": [WITH_MODE, {"name": "ul2"}]}, [8]),
    ],
)
def test_the_mode_is_one_that_the_model_was_trained_with(name, keys, mode):
    made, _ = rows(name, "causal", **keys)
    assert made[0][0] == [1, *mode, 100, 101, 20, 2]


def test_an_encoder_is_asked_for_each_token_of_the_choice_in_turn():
    made, owners = rows("masked_lm", "encoder")
    assert made[1] == ([1, 100, 101, 4, 104, 2], [1, 100, 101, 103, 104, 2], [3])
    assert made[2] == ([1, 100, 101, 103, 4, 2], [1, 100, 101, 103, 104, 2], [4])
    assert owners[:3] == [(0, 0), (0, 1), (0, 1)]


def test_a_mixture_that_holds_an_objective_of_continuing_is_asked_to_continue():
    parts = [{"name": "span_corruption"}, {"name": "prefix_lm"}]
    assert form_of(ObjectiveConfig(name="mixture", parts=parts), "encdec") == "continuation"
    assert form_of(ObjectiveConfig(name="mixture", parts=parts[:1]), "encdec") == "blank"


def test_questions_are_read_and_blank_lines_passed_over(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"gold": 1, "more": "keys"}) + "\n")
    first, second = read_questions(path)
    assert (first.query, first.choices, first.gold) == ("Two and two make", (" four", " five"), 0)
    assert second.gold == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "not a question"),
        (json.dumps(GOOD | {"choices": ["one"]}), "two or more choices"),
        (json.dumps(GOOD | {"choices": ["", "one"]}), "two or more choices"),
        (json.dumps(GOOD | {"query": 3}), "not a question"),
        (json.dumps(GOOD | {"gold": 2}), "gold is 2; it is the number of the right choice, 0 to 1"),
        (json.dumps(GOOD | {"gold": True}), "gold is True"),
        ('{"query": "\udcff"}', "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    path = tmp_path / "task.jsonl"
    path.write_bytes((json.dumps(GOOD) + "\n" + line + "\n").encode(errors="surrogateescape"))
    with pytest.raises(ValueError) as refused:
        read_questions(path)
    assert str(refused.value).startswith(f"{path}:2: ")
    assert words in str(refused.value)


def test_a_file_without_questions_or_no_file_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, words in (("empty.jsonl", "no question"), ("none.jsonl", "no such file")):
        with pytest.raises(ValueError, match=words):
            read_questions(tmp_path / name)
