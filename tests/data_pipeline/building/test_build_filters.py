"""Builds with filters: what they drop is nowhere, what they change is what is tokenized, and both are told."""

import json
from pathlib import Path

import pytest

from data_pipeline.building import tasks
from data_pipeline.building.build import build_dataset
from data_pipeline.building.clean import cleaned
from data_pipeline.building.folder import DECISIVE_KEYS, decisive_settings
from data_pipeline.building.sample import sample_filters
from data_pipeline.config import DataConfig
from data_pipeline.filters.chain import make_steps
from data_pipeline.filters.document import Document
from tests.data_pipeline.building.builds import digests, documents, settings, write_json_lines

WORDS = "a river flows to the sea and with it all that rain has left in the hills"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, stdlib_documents):
    """Code, a question of an evaluation, mail addresses, repetition, other languages; two sources."""
    folder = tmp_path_factory.mktemp("filtered")
    questions = folder / "questions.jsonl"
    questions.write_text(json.dumps({"query": WORDS, "choices": [" yes", " no"], "gold": 0}) + "\n")
    mixed = ["the same " * 40, f"They say {WORDS} yes.", "Write to jo@example.org and to al@example.org."]
    first = write_json_lines(folder / "first.jsonl", mixed + stdlib_documents[:40])
    second = write_json_lines(folder / "second.jsonl", [*stdlib_documents[40:80], "x", mixed[2] + " Now."])
    filters = [
        {"name": "decontaminate", "files": [str(questions)]},
        "gopher_repetition",
        "personal_data",
    ]
    return (first, second), filters


def filtered(folder, corpus, **keys):
    sources, filters = corpus
    return settings(folder, *sources, **{"filters": filters, "min_characters": 2, "shard_megabytes": 0.2, **keys})


@pytest.fixture(scope="module")
def built(ray_session, corpus, tokenizer_config, tmp_path_factory):
    config = filtered(tmp_path_factory.mktemp("built") / "data", corpus, num_cpus=2, validation_fraction=0)
    return config, build_dataset(config, tokenizer_config)


def test_what_is_tokenized_is_what_the_filters_leave(built, corpus, tokenizer):
    config, _ = built
    steps = make_steps(config.filters)
    texts = [json.loads(line)["text"] for source in corpus[0] for line in source.read_text().splitlines()]
    left = [document.text for text in texts if isinstance(document := cleaned(text, config, steps), Document)]
    found = [tokenizer.decode(tokens[1:-1]) for tokens in documents(config.path)]
    assert found == list(dict.fromkeys(left))
    assert not any(WORDS in text or "the same the same" in text or "jo@example.org" in text for text in found)


def test_drops_and_replacements_are_counted_by_rule(built):
    _, report = built
    counts = report.manifest.counts
    assert counts["dropped_decontaminate.overlap"] == 1
    assert counts["dropped_gopher_repetition.top_2_gram"] >= 1
    assert counts["dropped_too_short"] == 1
    assert counts["replaced_mail_addresses"] >= 4
    assert counts["documents_read"] == 85
    assert counts["documents_kept"] + sum(report.dropped.values()) == 85


def test_some_of_what_was_dropped_is_kept_with_its_place(built, corpus):
    config, report = built
    text = Path(config.path, "dropped.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.split("\n") if line]
    overlap = next(line for line in lines if line["reason"] == "decontaminate.overlap")
    assert overlap["where"] == f"{corpus[0][0]} record 2"
    assert (overlap["source"], overlap["text"]) == (0, f"They say {WORDS} yes.")
    by_kind = [(line["source"], line["reason"]) for line in lines]
    assert max(map(by_kind.count, by_kind)) <= 3
    assert {reason for _, reason in by_kind} == report.dropped.keys() - {"repeated"}
    assert all(len(line["text"]) <= 300 for line in lines)


def test_the_bytes_do_not_depend_on_workers_or_a_stop(built, corpus, tokenizer_config, tmp_path, monkeypatch):
    config = filtered(tmp_path / "data", corpus, num_cpus=1, validation_fraction=0)
    real = tasks.write_json

    def failing(path, facts):
        if path.name == "00001.done":
            raise OSError(5, "broken", str(path))
        real(path, facts)

    from data_pipeline.building import build

    def stopped(job, index, units):
        tasks.write_json = failing
        try:
            return tasks.tokenize_task(job, index, units)
        finally:
            tasks.write_json = real

    with monkeypatch.context() as patch:
        patch.setattr(build, "tokenize_task", stopped)
        with pytest.raises(OSError, match="broken"):
            build_dataset(config, tokenizer_config)
    assert not (tmp_path / "data" / "dropped.jsonl").exists()
    report = build_dataset(config, tokenizer_config)
    assert report.num_resumed > 0
    assert digests(config.path) == digests(built[0].path)


def test_the_content_of_evaluation_files_is_part_of_what_a_dataset_is(built, corpus, tokenizer_config, tmp_path):
    config, _ = built
    assert build_dataset(config, tokenizer_config).reused
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(Path(corpus[1][0]["files"][0]).read_bytes())
    elsewhere = [{"name": "decontaminate", "files": [str(moved)]}, *corpus[1][1:]]
    assert build_dataset(filtered(config.path, (corpus[0], elsewhere), validation_fraction=0), tokenizer_config).reused
    moved.write_text('{"query": "another", "choices": ["a", "b"], "gold": 1}\n')
    with pytest.raises(ValueError, match=r"data\.path: .* was built with data\.filters"):
        build_dataset(filtered(config.path, (corpus[0], elsewhere), validation_fraction=0), tokenizer_config)


def test_a_mistake_in_filters_is_said_before_anything_is_written(corpus, tokenizer_config, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"query": 1}\n')
    for file, words in (("none.jsonl", "there is no file"), ("bad.jsonl", "not a question")):
        filters = [{"name": "decontaminate", "files": [str(tmp_path / file)]}]
        with pytest.raises(ValueError, match=words):
            build_dataset(filtered(tmp_path / "data", (corpus[0], filters)), tokenizer_config)
    assert not (tmp_path / "data").exists()


def test_a_filter_that_takes_all_away_is_one_sentence(corpus, tokenizer_config, tmp_path):
    config = filtered(tmp_path / "data", (corpus[0], [{"name": "characters", "min_length": 10**9}]))
    with pytest.raises(ValueError, match=r"no document is left to train on .*characters\.short .*data\.filters"):
        build_dataset(config, tokenizer_config)
    assert not list((tmp_path / "data").glob("*.jsonl"))


def test_without_filters_the_settings_of_a_dataset_are_those_of_before(tokenizer):
    settings_now = decisive_settings(DataConfig(path="unused"), tokenizer)
    assert settings_now.keys() == {*(f"data.{key}" for key in DECISIVE_KEYS), "tokenizer"}
    assert "filters" not in DECISIVE_KEYS


# ---- a dry run


def test_a_sample_shows_each_filter_and_writes_nothing(corpus, tmp_path):
    config = filtered(tmp_path / "data", corpus)
    report = sample_filters(config, 1000)
    assert report == sample_filters(config, 1000)
    assert (report.documents, report.by_source) == (85, [43, 42])
    lengths, overlap, repetition, personal = report.effects
    assert [effect.name for effect in report.effects] == [
        "lengths",
        "decontaminate",
        "gopher_repetition",
        "personal_data",
    ]
    assert (lengths.dropped, overlap.documents, overlap.dropped) == (1, 84, 1)
    assert repetition.documents == 83
    assert personal.documents == 83 - repetition.dropped == report.kept
    assert personal.reasons["mail_addresses"] >= 4 and personal.changed >= 2
    assert any("|||EMAIL_ADDRESS|||" in example["text"] for example in personal.examples)
    assert overlap.examples == [
        {"reason": "overlap", "where": f"{corpus[0][0]} record 2", "text": f"They say {WORDS} yes."}
    ]
    assert not (tmp_path / "data").exists()


def test_a_sample_takes_as_many_documents_of_each_source_where_it_can(corpus, tmp_path):
    small = write_json_lines(tmp_path / "small.jsonl", ["one document", "two"])
    config = filtered(tmp_path / "data", ((small, *corpus[0]), corpus[1]))
    report = sample_filters(config, 20)
    assert (report.documents, report.by_source) == (20, [2, 9, 9])
