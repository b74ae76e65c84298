"""Overlap with questions, in files such as `shardline evaluate` takes."""

import json

import numpy as np
import pytest

from data_pipeline.filters.decontaminate import Decontamination, Overlaps, digest, find_overlaps
from data_pipeline.filters.document import Document, Dropped
from data_pipeline.filters.settings import Decontaminate

QUERY = "Which of these is the longest river that flows through more than four countries of Europe,"
CHOICES = [" the Danube, of course", " the Rhine"]
REST = "Other words stand before it, and some of them behind."


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "rivers.jsonl"
    path.write_text(json.dumps({"query": QUERY, "choices": CHOICES, "gold": 0}) + "\n")
    return path


def settings(*files, **keys):
    return Decontaminate(files=[str(file) for file in files], **keys)


def drops(filters, text):
    return Decontamination(find_overlaps(filters))(Document(text)) == Dropped("overlap")


def words(first, last):
    """Words of the question with its first choice."""
    return " ".join((QUERY + CHOICES[0]).split()[first:last])


@pytest.mark.parametrize("first", [0, 3, 7])
def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_none(questions, first):
    assert drops(settings(questions), f"{REST} {words(first, first + 13)} {REST}")
    assert not drops(settings(questions), f"{REST} {words(first, first + 12)} {REST}")


def test_an_overlap_may_reach_from_the_query_into_any_choice(questions):
    assert drops(settings(questions), f"{REST} {QUERY.split(maxsplit=5)[-1]} the Rhine {REST}")


def test_punctuation_letters_and_line_feeds_do_not_hide_one(questions):
    text = words(0, 14).upper().replace(" ", ",\n--") + "!"
    assert drops(settings(questions), text)
    assert not drops(settings(questions), text.replace("RIVER", "STREAM"))


def test_short_questions_are_looked_for_whole_if_they_are_long_enough(tmp_path):
    path = tmp_path / "short.jsonl"
    query = "One two three four five six seven"
    path.write_text(json.dumps({"query": query, "choices": [" eight", " nine"], "gold": 0}) + "\n")
    assert drops(settings(path), f"{REST} {query} nine {REST}")
    assert not drops(settings(path), f"{REST} {query} ten {REST}")
    assert not drops(settings(path, min_words=9), f"{REST} {query} nine {REST}")


def test_chinese_is_compared_character_by_character(tmp_path):
    path = tmp_path / "zh.jsonl"
    path.write_text(json.dumps({"query": "天地玄黃宇宙洪荒日月盈昃", "choices": ["辰宿", "列張"], "gold": 0}) + "\n")
    assert drops(settings(path), "古文\uff1a天地玄黃\uff0c宇宙洪荒。日月盈昃\uff0c列張。")
    assert not drops(settings(path), "古文\uff1a天地玄黃\uff0c宇宙洪荒。日月盈昃\uff0c寒來暑往。")


def test_the_table_comes_back_as_it_was_saved(questions, tmp_path):
    table = find_overlaps(settings(questions))
    table.save(tmp_path / "table.npz")
    loaded = Overlaps.load(tmp_path / "table.npz")
    assert loaded.vocabulary == table.vocabulary
    assert loaded.hashes.keys() == table.hashes.keys()
    assert all(np.array_equal(loaded.hashes[n], table.hashes[n]) for n in table.hashes)


def test_the_digest_is_of_the_content_and_not_of_the_place(questions, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "copy.jsonl"
    other.write_bytes(questions.read_bytes())
    assert digest(settings(other)) == digest(settings(questions))
    other.write_bytes(other.read_bytes() + b"\n")
    assert digest(settings(other)) != digest(settings(questions))


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    for read in (digest, find_overlaps):
        with pytest.raises(ValueError, match=r"data\.filters: decontaminate\.files: there is no file .*nowhere"):
            read(settings(tmp_path / "nowhere.jsonl"))
