"""The page about a dataset says what is in it, and shows text as text."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.manifest import Manifest
from data_pipeline.reading import survey as surveying
from data_pipeline.reading.survey import survey
from launcher.data_report import write_data_report
from tests.training.runs import tiny_config
from training.config import RunConfig


class Page(HTMLParser):
    """Text of a page, and its tags."""

    def __init__(self, path):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(path.read_text())

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def lengths_of(folder):
    """Tokens of every document, from the index files themselves."""
    found = []
    for path in folder.glob("*.idx"):
        body = path.read_bytes()
        sequences, documents = np.frombuffer(body, "<u8", 2, 18)
        sizes = np.frombuffer(body, "<i4", int(sequences), 34)
        borders = np.frombuffer(body, "<i8", int(documents), 34 + 12 * int(sequences))
        found += [int(sizes[a:b].sum()) for a, b in itertools.pairwise(borders)]
    return found


@pytest.fixture
def folder(real_dataset):
    return Path(real_dataset)


def test_lengths_are_those_of_all_documents_by_power_of_two(folder):
    manifest = Manifest.load(folder)
    found = survey(folder, manifest)
    expected = np.bincount(np.log2(lengths_of(folder)).astype(int))
    counts = [sum(column) for column in zip(*(padded(c, len(expected)) for c in found.lengths.values()), strict=True)]
    assert counts == expected.tolist()
    assert found.num_measured == manifest.num_documents("train") + manifest.num_documents("validation")
    assert sum(source.num_tokens for source in found.sources) == sum(map(manifest.num_tokens, manifest.splits))
    assert found.languages is None


def padded(counts, size):
    return counts + [0] * (size - len(counts))


def test_languages_are_told_of_some_documents_of_each_source(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(surveying, "MOST_TEXTS", 40)
    seen = []

    def detect(text):
        seen.append(text)
        return ("zh" if re.search("[\u4e00-\u9fff]", text) else "en"), 1.0

    found = survey(folder, Manifest.load(folder), tokenizer.decode, detect)
    assert 0 < len(seen) <= 40 + len(found.sources)
    assert sum(each.num_documents for each in found.languages) == len(seen)
    assert sum(each.text_bytes for each in found.languages) == sum(len(text.encode()) for text in seen)


def test_text_of_documents_is_shown_as_text(folder, tmp_path):
    page = Page(write_data_report(folder, None, None, tmp_path / "page.html"))
    assert "script" not in page.tags and "give the tokenizer" in page.text
    dropped = {"reason": "gopher_quality.stop_words", "source": 0, "where": "a record 1", "text": "<script>x</script>"}
    cluster = {
        "num_removed": 7,
        "kept": {"beginning": "<b>kept"},
        "removed": [{"similarity": 0.9, "beginning": "copy"}],
    }
    manifest = Manifest.load(folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.glob("*-0*"):
        (copy / path.name).symlink_to(path)
    counts = {**manifest.counts, "dropped_gopher_quality.stop_words": 3}
    manifest.model_copy(update={"counts": counts, "sources": []}).save(copy)
    (copy / "dropped.jsonl").write_text(json.dumps(dropped) + "\nno line\n")
    (copy / "near_copies.jsonl").write_text(json.dumps(cluster) + '\n{"num_removed": "many"}\n')
    page = Page(write_data_report(copy, None, None, None))
    assert "<script>x</script>" in page.text and "script" not in page.tags
    assert (
        "gopher quality.stop words" in page.text and "7 removed for: <b>kept" in page.text and "0.90 copy" in page.text
    )


def test_the_mix_of_a_run_is_drawn_stage_by_stage(folder, tokenizer_config, tmp_path):
    tree = tiny_config(folder, tokenizer=tokenizer_config.model_dump()).model_dump()
    stages = [{"from_step": 2, "weights": {"all": 3}}]
    mix = {"sources": [{"name": "all", "path": str(folder), "weight": 1}], "stages": stages}
    config = RunConfig.model_validate({**tree, "data": {**tree["data"], "mix": mix}})
    page = Page(write_data_report(folder, None, config, tmp_path / "page.html"))
    assert "steps 1 to 2" in page.text and "all 100.0 %" in page.text and "samples drawn" in page.text


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        write_data_report(tmp_path, None, None, None)
