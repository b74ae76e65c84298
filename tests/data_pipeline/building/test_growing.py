"""Sources added to a finished dataset: every document once, and what was there stays as it was."""

import json
from pathlib import Path

import pytest

from data_pipeline.building import build, tables
from data_pipeline.building.build import build_dataset
from data_pipeline.config import SourceConfig
from data_pipeline.manifest import Manifest
from data_pipeline.opening import earlier_dataset, open_dataset
from tests.data_pipeline.building.builds import digests, documents, settings, write_json_lines

pytestmark = pytest.mark.usefixtures("ray_session")


def texts(first, stop):
    return [f"document number {number} " * 20 for number in range(first, stop)]


@pytest.fixture
def sources(tmp_path):
    """Three sources that share documents: 100 of 0-99, then 20-139 with copies of its own, then 130-199."""
    given = [texts(0, 100), [*texts(20, 140), *texts(100, 110)], texts(130, 200)]
    return [write_json_lines(tmp_path / f"{number}.jsonl", each) for number, each in enumerate(given)]


def config_of(folder, paths, **keys):
    return settings(folder, *paths, **{"shard_megabytes": 0.01, "validation_fraction": 0.1, **keys})


def shard_files(folder):
    """Content and time of change of every file of a shard."""
    paths = sorted(path for path in Path(folder).iterdir() if path.name.startswith(("train", "validation")))
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_a_dataset_grown_twice_holds_the_documents_of_one_built_at_once(
    sources, tokenizer, tokenizer_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(tables, "RANGE_ROWS", 60)
    grown = tmp_path / "grown"
    seen, stages = [], []
    for count in (1, 2, 3):
        before = shard_files(grown) if grown.exists() else {}
        report = build_dataset(config_of(grown, sources[:count]), tokenizer_config, seen.append)
        assert not report.reused
        assert before.items() <= shard_files(grown).items()
        stages.append(report.manifest)
    whole = build_dataset(config_of(tmp_path / "whole", sources), tokenizer_config)
    for split in ("train", "validation"):
        assert documents(grown, split) == documents(tmp_path / "whole", split)
    assert report.manifest.counts == whole.manifest.counts
    assert report.manifest.counts["dropped_repeated"] == 80 + 10 + 10
    found = [tokenizer.decode(ids) for split in ("train", "validation") for ids in documents(grown, split)]
    assert sorted(found) == sorted(texts(0, 200))
    for stage in stages[:-1]:
        assert earlier_dataset(grown, stage.fingerprints["tokens"]) == stage
    assert earlier_dataset(grown, "0" * 32) is None
    again = build_dataset(config_of(grown, sources), tokenizer_config)
    assert again.reused
    assert again.manifest == report.manifest == open_dataset(grown, tokenizer_config.path)
    assert not (grown / ".shardline-build").exists()
    kept = json.loads((grown / "build.json").read_text())["document_keys"]
    assert {path.name for path in grown.glob("keys-*")} == set(kept)
    hashed = [state.total for state in seen if state.stage == "hashing documents" and state.done == 0]
    assert max(hashed) < len(report.manifest.splits["train"]), "what was there was read again"


@pytest.mark.parametrize("place", ["before build.json", "before manifest.json", "after it"])
def test_a_build_that_adds_sources_goes_on_where_it_was_stopped(
    sources, tokenizer_config, tmp_path, monkeypatch, place
):
    expected = tmp_path / "expected"
    for count in (2, 3):
        build_dataset(config_of(expected, sources[:count]), tokenizer_config)
    folder = tmp_path / "data"
    first = build_dataset(config_of(folder, sources[:2]), tokenizer_config)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        target = {"before build.json": "_keep_keys", "before manifest.json": "save", "after it": "clear_leftovers"}
        owner = Manifest if place == "before manifest.json" else build.build_folder
        patch.setattr(owner, target[place], stop)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(config_of(folder, sources), tokenizer_config)
    if place != "after it":
        # the smaller dataset is there and whole, as a run that trains on it finds it
        assert open_dataset(folder) == first.manifest
    report = build_dataset(config_of(folder, sources), tokenizer_config)
    assert report.reused == (place == "after it")
    assert report.num_resumed == (0 if report.reused else len(list((folder).glob("train-*.bin"))) - count_of(first))
    assert digests(folder) == digests(expected)


def count_of(report):
    return len(report.manifest.splits["train"])


def test_giving_up_an_addition_leaves_the_dataset_that_was_there(sources, tokenizer_config, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    build_dataset(config_of(folder, sources[:2]), tokenizer_config)
    before = digests(folder)
    with monkeypatch.context() as patch:
        patch.setattr(build.build_folder, "finish", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_dataset(config_of(folder, sources), tokenizer_config)
    assert build_dataset(config_of(folder, sources[:2]), tokenizer_config).reused
    assert digests(folder) == before


def test_a_build_of_the_smaller_list_leaves_one_alone_that_adds_sources_right_now(
    sources, tokenizer_config, tmp_path, monkeypatch
):
    folder = tmp_path / "data"
    build_dataset(config_of(folder, sources[:2]), tokenizer_config)
    left = []

    def meanwhile(*arguments):
        assert build_dataset(config_of(folder, sources[:2]), tokenizer_config).reused
        left.append(len(list(folder.glob("train-*.bin"))))
        return finish(*arguments)

    finish = build.build_folder.finish
    monkeypatch.setattr(build.build_folder, "finish", meanwhile)
    report = build_dataset(config_of(folder, sources), tokenizer_config)
    assert left == [count_of(report)]
    open_dataset(folder, tokenizer_config.path)


def test_sources_that_were_there_may_be_gone_but_not_changed(sources, tokenizer_config, tmp_path):
    folder = tmp_path / "data"
    build_dataset(config_of(folder, sources[:1]), tokenizer_config)
    sources[0].rename(tmp_path / "away.jsonl")
    report = build_dataset(config_of(folder, sources[:2]), tokenizer_config)
    assert report.manifest.counts["documents_kept"] == 140
    assert build_dataset(config_of(folder, sources[:2]), tokenizer_config).reused
    write_json_lines(sources[1], ["changed"])
    (tmp_path / "away.jsonl").rename(sources[0])
    with pytest.raises(ValueError, match=r"built from 2 files of \d+ bytes, the sources are 2 of \d+ now"):
        build_dataset(config_of(folder, sources), tokenizer_config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda paths: [paths[1], paths[0], paths[2]], r"was built with data\.sources .*, not .*; choose another"),
        (lambda paths: [paths[0]], r"was built with data\.sources .*, not .*; choose another"),
    ],
)
def test_sources_removed_or_moved_are_refused_by_name(sources, tokenizer_config, tmp_path, change, words):
    build_dataset(config_of(tmp_path / "data", sources[:2]), tokenizer_config)
    with pytest.raises(ValueError, match=words):
        build_dataset(config_of(tmp_path / "data", change(sources)), tokenizer_config)
    other = config_of(tmp_path / "data", sources, min_characters=5)
    with pytest.raises(ValueError, match=r"was built with data\.min_characters 1, not 5"):
        build_dataset(other, tokenizer_config)


def test_a_dataset_without_hashes_or_with_damaged_ones_is_refused(sources, tokenizer_config, tmp_path):
    folder = tmp_path / "data"
    build_dataset(config_of(folder, sources[:2]), tokenizer_config)
    before = digests(folder)
    (keys,) = folder.glob("keys-*")
    content = keys.read_bytes()
    keys.write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match=r"keys-.*\.npy: is missing or damaged, so copies could not be found; choose"):
        build_dataset(config_of(folder, sources), tokenizer_config)
    keys.write_bytes(content)
    settings_file = folder / "build.json"
    facts = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps({key: value for key, value in facts.items() if key != "document_keys"}))
    with pytest.raises(ValueError, match=r"a version that kept no hashes of its documents, .*; choose another"):
        build_dataset(config_of(folder, sources), tokenizer_config)
    settings_file.write_text(json.dumps(facts))
    assert digests(folder) == before


def test_without_deduplication_everything_is_added(sources, tokenizer_config, tmp_path):
    for count in (1, 3):
        report = build_dataset(config_of(tmp_path / "data", sources[:count], deduplicate="none"), tokenizer_config)
    assert report.manifest.counts["documents_kept"] == 100 + 130 + 70
    assert not list((tmp_path / "data").glob("keys-*"))


def test_a_source_added_without_documents_ends_the_build_and_leaves_the_dataset(sources, tokenizer_config, tmp_path):
    folder = tmp_path / "data"
    build_dataset(config_of(folder, sources[:1]), tokenizer_config)
    config = config_of(folder, sources[:1])
    config.sources.append(SourceConfig(path=str(write_json_lines(tmp_path / "empty.jsonl", []))))
    with pytest.raises(ValueError, match=r"data\.sources\[1\]\.path: '.*empty\.jsonl' holds no usable document"):
        build_dataset(config, tokenizer_config)
    open_dataset(folder, tokenizer_config.path)
