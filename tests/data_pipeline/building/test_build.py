"""A build writes every document once, in order, and the same bytes whatever it runs on."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece

from data_pipeline.building import tables
from data_pipeline.building.build import build_dataset
from data_pipeline.config import DeduplicateConfig
from data_pipeline.manifest import Manifest
from data_pipeline.shards import ShardReader
from data_pipeline.vocabulary import Vocabulary
from tests.data_pipeline.building.builds import digests, documents, settings, write_json_lines

pytestmark = pytest.mark.usefixtures("ray_session")


def test_every_document_is_in_the_shards_in_order_between_bos_and_eos(plain, tokenizer, stdlib_documents):
    config, report, _ = plain
    expected = tokenizer.encode_documents(stdlib_documents)
    ids = np.split(expected[0], np.cumsum(expected[1])[:-1])
    held_out = documents(config.path, "validation")
    assert 0.03 < len(held_out) / len(stdlib_documents) < 0.2
    left = [part.tolist() for part in ids if part.tolist() not in held_out]
    assert documents(config.path) == left
    assert held_out == [part.tolist() for part in ids if part.tolist() in held_out]
    assert len(report.manifest.splits["train"]) > 5


def test_the_report_counts_what_was_read(plain, tokenizer, stdlib_documents):
    _, report, seen = plain
    counts = report.manifest.counts
    assert counts["documents_read"] == counts["documents_kept"] == len(stdlib_documents)
    specials = {"unk": 0, "pad": 3, "mask": 4, "cls": 5, "sep": 6, "R": 7, "S": 8, "X": 9}
    assert report.manifest.special_ids == specials
    assert (report.manifest.first_sentinel_id, report.manifest.num_sentinels) == (10, 32)
    vocabulary = Vocabulary.of(report.manifest)
    borders = vocabulary.starts_word.tolist(), vocabulary.ends_word.tolist()
    assert borders == tuple(flags.tolist() for flags in tokenizer.word_borders)
    shards = [shard for split in report.manifest.splits.values() for shard in split]
    assert sum(shard.source_bytes for shard in shards) == sum(len(text.encode()) for text in stdlib_documents)
    assert (report.reused, report.num_resumed, report.encoder, report.dropped) == (False, 0, "gigatoken", {})
    assert [state.stage for state in seen if state.done == 0] == [
        "listing files",
        "hashing documents",
        "finding copies",
        "tokenizing",
    ]
    assert seen[-1].done == seen[-1].total == len(report.manifest.splits["train"])
    assert seen[-1].tokens == report.manifest.num_tokens("train") + report.manifest.num_tokens("validation")


def test_nothing_but_the_dataset_is_left_behind(plain):
    config, report, _ = plain
    names = [shard.name for split in report.manifest.splits.values() for shard in split]
    expected = {name + suffix for name in names for suffix in (".bin", ".idx", ".sums")}
    found = {path.name for path in Path(config.path).iterdir()}
    (keys,) = (name for name in found if name.startswith("keys-"))
    assert found == expected | {"manifest.json", "build.json", keys}
    assert len(np.load(Path(config.path) / keys)) == report.manifest.counts["documents_kept"]


def test_one_cpu_and_two_write_the_same_bytes(plain, tokenizer_config, tmp_path):
    config = plain[0].model_copy(update={"path": str(tmp_path / "data"), "num_cpus": 1})
    build_dataset(config, tokenizer_config)
    assert digests(config.path) == digests(plain[0].path)


def test_sentencepiece_itself_writes_the_same_bytes(plain, tokenizer_config, tmp_path):
    config = plain[0].model_copy(update={"path": str(tmp_path / "data")})
    slow = tokenizer_config.model_copy(update={"fast_encoder": "off"})
    assert build_dataset(config, slow).encoder == "sentencepiece"
    assert digests(config.path) == digests(plain[0].path)


def test_megatron_core_reads_the_shards(plain):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    config, report, _ = plain
    for split in ("train", "validation"):
        found = []
        for shard in report.manifest.splits[split]:
            dataset = IndexedDataset(str(Path(config.path) / shard.name))
            assert len(dataset) == shard.num_documents
            found += [dataset[index].tolist() for index in range(len(dataset))]
        assert found == documents(config.path, split)


def test_a_finished_dataset_is_reused_even_without_its_sources(plain, tokenizer_config):
    config, report, _ = plain
    before = digests(config.path)
    again = build_dataset(config, tokenizer_config)
    assert again.reused
    assert again.manifest == report.manifest
    assert build_dataset(config.model_copy(update={"sources": []}), tokenizer_config).reused
    assert digests(config.path) == before


def test_a_dataset_of_other_settings_is_refused_with_what_differs(plain, tokenizer_config):
    config = plain[0]
    other = config.model_copy(update={"min_characters": 5})
    with pytest.raises(ValueError, match=r"built with data\.min_characters 1, not 5; choose another data\.path"):
        build_dataset(other, tokenizer_config)


def test_a_dataset_of_other_files_is_refused(tokenizer_config, tmp_path):
    write_json_lines(tmp_path / "a.jsonl", ["some text"] * 3)
    config = settings(tmp_path / "data", tmp_path / "*.jsonl", validation_fraction=0)
    build_dataset(config, tokenizer_config)
    write_json_lines(tmp_path / "b.jsonl", ["more text"])
    with pytest.raises(ValueError, match=r"built from 1 files of \d+ bytes, the sources are 2 of \d+ now"):
        build_dataset(config, tokenizer_config)


def test_a_dataset_of_a_file_edited_since_is_refused(tokenizer_config, tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl", ["some text"] * 3)
    config = settings(tmp_path / "data", path, validation_fraction=0)
    build_dataset(config, tokenizer_config)
    write_json_lines(path, ["same size"] * 3)
    os.utime(path, (1, 1))
    with pytest.raises(ValueError, match=r"was built before a file of the sources was last changed; choose another"):
        build_dataset(config, tokenizer_config)


def test_copies_are_dropped_but_for_the_first_across_tasks_and_sources(tokenizer, tokenizer_config, tmp_path):
    texts = [f"document {number % 40} " * 20 for number in range(100)]
    write_json_lines(tmp_path / "a.jsonl", texts)
    pq.write_table(pa.table({"text": [*texts[:5], "only here"]}), tmp_path / "b.parquet")
    paths = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    config = settings(tmp_path / "data", *paths, shard_megabytes=0.005, validation_fraction=0)
    report = build_dataset(config, tokenizer_config)
    assert report.dropped == {"repeated": 65}
    found = [tokenizer.decode(ids) for ids in documents(config.path)]
    assert found == [*texts[:40], "only here"]
    everything = {"path": str(tmp_path / "all"), "deduplicate": DeduplicateConfig(documents="none")}
    kept = build_dataset(config.model_copy(update=everything), tokenizer_config)
    assert kept.manifest.num_documents("train") == 106
    check_sources(config, report.manifest, tokenizer_config)


def check_sources(config, manifest, tokenizer_config):
    """Shards and counts of two sources, the second of which has one document of its own; names may change later."""
    assert [source.name for source in manifest.sources] == ["a", "b"]
    assert manifest.sources[0].counts == {"documents_read": 100, "documents_kept": 40, "dropped_repeated": 60}
    assert manifest.sources[1].counts == {"documents_read": 6, "documents_kept": 1, "dropped_repeated": 5}
    shards = manifest.splits["train"]
    assert [int(shards.of_source(number).num_documents.sum()) for number in range(2)] == [40, 1]
    named = [source.model_copy(update={"name": f"new-{n}"}) for n, source in enumerate(config.sources)]
    again = build_dataset(config.model_copy(update={"sources": named}), tokenizer_config)
    assert again.reused and [source.name for source in again.manifest.sources] == ["new-0", "new-1"]
    assert Manifest.load(config.path) == again.manifest and again.manifest.fingerprint == manifest.fingerprint
    old = json.loads((Path(config.path) / "manifest.json").read_text())
    del old["sources"]
    for shard in (shard for split in old["splits"].values() for shard in split):
        del shard["source"]
    (Path(config.path) / "manifest.json").write_text(json.dumps(old))
    found = build_dataset(config, tokenizer_config)
    assert found.reused and not found.manifest.sources and found.manifest.fingerprints == manifest.fingerprints


def test_many_ranges_and_bundles_find_the_same_copies(tokenizer_config, tmp_path, monkeypatch):
    write_json_lines(tmp_path / "a.jsonl", [f"document {number % 40}" for number in range(100)])
    config = settings(tmp_path / "one", tmp_path / "a.jsonl", shard_megabytes=0.0005)
    build_dataset(config, tokenizer_config)
    monkeypatch.setattr(tables, "RANGE_ROWS", 30)
    monkeypatch.setattr(tables, "FEW_TASKS", 2)
    stages = set()
    many = config.model_copy(update={"path": str(tmp_path / "many")})
    build_dataset(many, tokenizer_config, lambda state: stages.add(state.stage))
    assert {"bundling hashes", "handing copies back"} < stages
    one, other = (
        {name: digest for name, digest in digests(folder).items() if not name.startswith(("keys", "build"))}
        for folder in (config.path, many.path)
    )
    assert one == other


def test_bad_records_are_counted_in_the_manifest_and_located_in_the_report(tokenizer_config, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good NUL \\u0000"}\nno json\n{"text": "\xff"}\n{"text": "x"}\n{"other": 1}\n')
    config = settings(tmp_path / "data", path, min_characters=2, validation_fraction=0)
    report = build_dataset(config, tokenizer_config)
    assert report.dropped == {"invalid_utf8": 1, "malformed_json": 1, "missing_text": 1, "too_short": 1}
    assert report.manifest.counts["documents_read"] == 5
    assert report.manifest.counts["documents_kept"] == 1
    assert report.examples["invalid_utf8"] == [f"{path} record 3"]


def test_a_document_of_50_megabytes_has_sentencepiece_s_ids(tokenizer, tokenizer_config, tmp_path, stdlib_documents):
    # no piece holds a line feed, so the ids of repeated lines are the repeated ids of the lines
    part = "".join(text + "\n" for text in stdlib_documents)[:1_000_000] + "\n"
    times = 50_000_000 // len(part.encode()) + 1
    text = part * times
    write_json_lines(tmp_path / "a.jsonl", ["before", text, "after"])
    config = settings(tmp_path / "data", tmp_path / "a.jsonl", validation_fraction=0)
    build_dataset(config, tokenizer_config)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_path))
    ids = [model.EncodeAsNumpy("before"), np.tile(model.EncodeAsNumpy(part), times), model.EncodeAsNumpy("after")]
    shards = [ShardReader(tmp_path / "data" / shard.name) for shard in Manifest.load(config.path).splits["train"]]
    found = np.concatenate([shard.tokens(0, shard.num_tokens) for shard in shards])
    assert np.array_equal(found, np.concatenate([part for each in ids for part in ([1], each, [2])]))


def test_data_in_any_format_gives_the_same_training_tokens(plain, tokenizer_config, tmp_path, stdlib_documents):
    pq.write_table(pa.table({"text": stdlib_documents}), tmp_path / "a.parquet", row_group_size=13)
    config = settings(tmp_path / "data", tmp_path / "a.parquet", validation_fraction=0.1)
    build_dataset(config, tokenizer_config)
    for split in ("train", "validation"):
        assert documents(config.path, split) == documents(plain[0].path, split)
