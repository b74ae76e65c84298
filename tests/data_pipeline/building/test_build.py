import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece

from data_pipeline.building import build, tasks
from data_pipeline.building.build import build_dataset
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.manifest import Manifest
from data_pipeline.shards import ShardReader
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("ray_session")


def settings(folder, *paths, **keys):
    sources = [SourceConfig(path=str(path)) for path in paths]
    return DataConfig(**{"path": str(folder), "sources": sources, "shard_megabytes": 0.3, **keys})


def write_json_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def digests(folder):
    """Hash of every file of a finished dataset."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def documents(folder, split="train"):
    """Token lists of all documents of a split, in order."""
    result = []
    for shard in Manifest.load(folder).splits[split]:
        reader = ShardReader(Path(folder) / shard.name)
        starts = [*reader.boundaries(0, reader.num_tokens).tolist(), reader.num_tokens]
        result += [reader.tokens(*ends).tolist() for ends in itertools.pairwise(starts)]
    return result


@pytest.fixture(scope="module")
def plain(ray_session, corpus_file, tokenizer_config, tmp_path_factory):
    """The corpus built with two CPUs, and how it was reported."""
    seen = []
    config = settings(tmp_path_factory.mktemp("plain") / "data", corpus_file, validation_fraction=0.1, num_cpus=2)
    return config, build_dataset(config, tokenizer_config, seen.append), seen


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
    assert {path.name for path in Path(config.path).iterdir()} == expected | {"manifest.json", "build.json"}


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
    kept = build_dataset(
        config.model_copy(update={"path": str(tmp_path / "all"), "deduplicate": "none"}), tokenizer_config
    )
    assert kept.manifest.num_documents("train") == 106


def test_many_ranges_of_hashes_find_the_same_copies(tokenizer_config, tmp_path, monkeypatch):
    write_json_lines(tmp_path / "a.jsonl", [f"document {number % 40}" for number in range(100)])
    config = settings(tmp_path / "one", tmp_path / "a.jsonl", shard_megabytes=0.0005)
    build_dataset(config, tokenizer_config)
    monkeypatch.setattr(build, "RANGE_DOCUMENTS", 9)
    many = config.model_copy(update={"path": str(tmp_path / "many")})
    build_dataset(many, tokenizer_config)
    assert digests(config.path) == digests(many.path)


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


# ---- what goes wrong


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"data\.sources\[1\]\.path: '.*bad\.jsonl' holds no usable document \(its files are empty\)"),
        (b'{"body": 1}\n{}\n', r"data\.sources\[1\]\.path: .* no usable document \(missing_text 2\); correct its path"),
        (b"\xff\xfe\n", r"data\.sources\[1\]\.path: .* holds no usable document \(invalid_utf8 1\)"),
    ],
)
def test_a_source_without_documents_ends_the_build(tokenizer_config, tmp_path, content, words):
    good = write_json_lines(tmp_path / "good.jsonl", ["text"])
    (tmp_path / "bad.jsonl").write_bytes(content)
    config = settings(tmp_path / "data", good, tmp_path / "bad.jsonl")
    with pytest.raises(ValueError, match=words):
        build_dataset(config, tokenizer_config)
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_no_document_left_to_train_on_is_one_sentence(tokenizer_config, tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl", ["text", "words"])
    with pytest.raises(ValueError, match=r"no document is left to train on \(.*dropped_too_short 2\); relax"):
        build_dataset(settings(tmp_path / "data", path, min_characters=100), tokenizer_config)


def test_a_truncated_file_ends_the_build_with_its_own_sentence(tokenizer_config, tmp_path, stdlib_documents):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "gzip") as out:
        out.write("".join(json.dumps({"text": text}) + "\n" for text in stdlib_documents).encode())
    whole = sink.getvalue().to_pybytes()
    (tmp_path / "bad.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    good = write_json_lines(tmp_path / "good.jsonl", stdlib_documents)
    for deduplicate in ("exact", "none"):
        config = settings(tmp_path / "data", tmp_path / "bad.jsonl.gz", good, deduplicate=deduplicate)
        with pytest.raises(ValueError, match=r"^/.*bad\.jsonl\.gz: the gzip stream is truncated or damaged \([^\n]*$"):
            build_dataset(config, tokenizer_config)
        assert not list((tmp_path / "data").glob("train-00000.*"))
        assert not (tmp_path / "data" / "manifest.json").exists()


def test_no_tokenizer_and_no_sources_are_one_sentence_each(tokenizer_config, tmp_path, corpus_file):
    missing = tokenizer_config.model_copy(update={"path": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match=r"tokenizer\.path: .* run 'shardline tokenizer train CONFIG' first"):
        build_dataset(settings(tmp_path / "data", corpus_file), missing)
    with pytest.raises(ValueError, match=r"data\.sources: is empty and .* holds no dataset"):
        build_dataset(settings(tmp_path / "data"), tokenizer_config)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [("hash_task", ".shardline-build/keys-00003.npy"), ("tokenize_task", "train-00003.bin")],
)
def test_a_full_disk_is_an_oserror_and_room_lets_the_build_go_on(
    plain, tokenizer_config, corpus_file, tmp_path, monkeypatch, name, file
):
    folder = tmp_path / "data"
    real = getattr(tasks, name)

    def on_a_full_disk(job, index, units):
        # what is written to that file meets the kernel's own "no space left"
        from common import files
        from data_pipeline import shards

        def temporary_name(path):
            temporary = named(path)
            if path == folder / file:
                temporary.symlink_to("/dev/full")
            return temporary

        named = files.temporary_name
        files.temporary_name = shards.temporary_name = temporary_name
        try:
            return real(job, index, units)
        finally:
            files.temporary_name = shards.temporary_name = named

    config = settings(folder, corpus_file, validation_fraction=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(build, name, on_a_full_disk)
        with pytest.raises(OSError, match="No space left on device") as caught:
            build_dataset(config, tokenizer_config)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(folder / file)
    assert not (folder / "manifest.json").exists()
    assert not list(folder.glob("train-00003.*"))
    assert not list(folder.rglob("*.tmp"))
    build_dataset(config, tokenizer_config)
    shards = {name: digest for name, digest in digests(folder).items() if name.endswith((".bin", ".idx", ".sums"))}
    assert shards.items() <= digests(plain[0].path).items()


def test_a_write_that_fails_leaves_no_shard_behind_as_if_whole(tokenizer_config, tmp_path, monkeypatch):
    path = write_json_lines(tmp_path / "a.jsonl", ["text"])
    config = settings(tmp_path / "data", path, deduplicate="none", validation_fraction=0)
    loaded = Tokenizer.load(tokenizer_config.path)
    job = tasks.Job(config, tokenizer_config, loaded.fingerprint, "print", 1)
    job.work.mkdir(parents=True)
    real = os.fsync
    calls = []

    def fail_late(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail_late)
    units = build.plan_units(build.list_files(config.sources), config.sources, 10**6)
    with pytest.raises(OSError, match="No space left"):
        tasks.tokenize_task(job, 0, units)
    assert [path.name for path in job.folder.iterdir()] == [tasks.WORK_NAME]
    assert not list(job.work.iterdir())


def test_one_task_that_finds_other_ids_makes_sentencepiece_encode_all(plain, tokenizer_config, tmp_path, monkeypatch):
    real = tasks.tokenize_task

    def differing(job, index, units):
        from data_pipeline import tokenizer
        from data_pipeline.building import tasks

        if index == 3 and not job.reference_only:
            raise tasks.EncoderDiffers
        patched = tokenizer.Tokenizer.encode_documents

        def wrong_if_fast(self, texts):
            tokens, lengths = patched(self, texts)
            return (tokens[::-1] if self.encoder == "gigatoken" else tokens), lengths

        tokenizer.Tokenizer.encode_documents = wrong_if_fast
        try:
            return real(job, index, units)
        finally:
            tokenizer.Tokenizer.encode_documents = patched

    monkeypatch.setattr(build, "tokenize_task", differing)
    config = plain[0].model_copy(update={"path": str(tmp_path / "data"), "num_cpus": 1})
    report = build_dataset(config, tokenizer_config)
    assert (report.encoder, report.num_resumed) == ("sentencepiece", 0)
    assert digests(config.path) == digests(plain[0].path)


def test_ids_that_differ_in_the_middle_of_a_text_are_the_run_s_verdict(tokenizer_config, tmp_path, monkeypatch):
    path = write_json_lines(tmp_path / "a.jsonl", ["text"])
    config = settings(tmp_path / "data", path, deduplicate="none", validation_fraction=0)
    job = tasks.Job(config, tokenizer_config, Tokenizer.load(tokenizer_config.path).fingerprint, "print", 1)
    job.work.mkdir(parents=True)
    units = build.plan_units(build.list_files(config.sources), config.sources, 10**6)
    monkeypatch.setattr(Tokenizer, "matches_reference", lambda self, texts: self.encoder == "sentencepiece")
    monkeypatch.setattr(Tokenizer, "_use_fast_encoder", lambda self: setattr(self, "_fast", object()))
    tasks._tokenizer.cache_clear()
    try:
        assert build._run_guarded(tasks.tokenize_task, job, 0, units) == {"error": "encoder"}
    finally:
        tasks._tokenizer.cache_clear()
    assert not list(job.folder.glob("train*"))


def test_bugs_in_a_task_are_not_taken_for_a_user_s_mistake(tmp_path, tokenizer_config):
    def numpy_mistake(job, index, units):
        np.zeros(3).reshape(2, 2)

    job = tasks.Job(settings(tmp_path / "data"), tokenizer_config, "", "", 1)
    with pytest.raises(ValueError, match="reshape"):
        build._run_guarded(numpy_mistake, job, 0, [])


def test_two_builds_of_one_folder_at_once_are_refused(tokenizer_config, tmp_path, corpus_file):
    config = settings(tmp_path / "data", corpus_file)
    job = tasks.Job(config, tokenizer_config, "", "other", 1)
    with (
        build.build_folder.work_folder(job),
        pytest.raises(ValueError, match=r"data\.path: another build is writing to .*; wait for it"),
    ):
        build_dataset(config, tokenizer_config)


def test_files_that_no_build_left_are_neither_deleted_nor_overwritten(tokenizer_config, tmp_path, corpus_file):
    config = settings(tmp_path / "data", corpus_file)
    mine = [tmp_path / "data" / name for name in (".shardline-build/results.txt", "train-00000.bin", "work/thesis.txt")]
    for path, is_refused in zip(mine, (True, True, False), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        if is_refused:
            with pytest.raises(ValueError, match=rf"data\.path: {path} lies where shards are built.*move it away"):
                build_dataset(config, tokenizer_config)
            assert path.read_text() == "mine"
            path.unlink()
    build_dataset(config, tokenizer_config)
    shutil.rmtree(tmp_path / "data" / "work")
    (tmp_path / "data" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"data\.path: .*train-00000\.bin lies where shards are built"):
        build_dataset(config, tokenizer_config)


def test_a_cluster_that_does_not_answer_is_one_sentence():
    with pytest.raises(
        ValueError, match=r"data\.ray_address: no Ray cluster answers at '127\.0\.0\.1:1' .*write local"
    ):
        build._join_cluster("127.0.0.1:1", {})


# ---- interruptions


def test_folders_of_killed_builds_are_swept_away_and_those_of_living_ones_are_not(tmp_path):
    with build._temporary_folder(str(tmp_path)) as living:
        dead = tmp_path / "shardline-ray-dead"
        dead.mkdir()
        (dead / "lock").touch()
        for folder in (dead, living):
            os.utime(folder, (0, 0))
        with build._temporary_folder(str(tmp_path)) as new:
            assert {path.name for path in tmp_path.iterdir()} == {Path(living).name, Path(new).name}
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from data_pipeline.building.build import build_dataset
from data_pipeline.config import DataConfig, TokenizerConfig

def die(state):
    if state.stage == "tokenizing" and state.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

build_dataset(DataConfig.model_validate_json(sys.argv[1]), TokenizerConfig.model_validate_json(sys.argv[2]), die)
"""


def test_a_build_killed_on_the_way_goes_on_to_the_same_bytes(plain, tokenizer_config, tmp_path):
    config = plain[0].model_copy(update={"path": str(tmp_path / "data"), "num_cpus": 1})
    command = [sys.executable, "-c", KILLED, config.model_dump_json(), tokenizer_config.model_dump_json()]
    assert subprocess.run(command, cwd=ROOT, timeout=300).returncode == -signal.SIGKILL
    # its workers may live on for a moment: what they write must not spoil the next build
    assert not (tmp_path / "data" / "manifest.json").exists()
    report = build_dataset(config, tokenizer_config)
    assert report.num_resumed >= 2
    assert digests(config.path) == digests(plain[0].path)


def test_a_shard_damaged_while_the_build_lay_still_is_written_again(plain, tokenizer_config, tmp_path, monkeypatch):
    config = plain[0].model_copy(update={"path": str(tmp_path / "data")})

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build.build_folder, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(config, tokenizer_config)
    damaged = tmp_path / "data" / "train-00001.bin"
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    report = build_dataset(config, tokenizer_config)
    assert report.num_resumed == len(plain[1].manifest.splits["train"]) - 1
    assert digests(config.path) == digests(plain[0].path)


def test_what_another_interrupted_build_left_is_not_used(plain, tokenizer_config, tmp_path, monkeypatch):
    config = plain[0].model_copy(update={"path": str(tmp_path / "data"), "min_characters": 2000})

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build.build_folder, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(config, tokenizer_config)
    (tmp_path / "data" / "notes.txt").write_text("mine")
    report = build_dataset(config.model_copy(update={"min_characters": 1}), tokenizer_config)
    assert report.num_resumed == 0
    assert (tmp_path / "data" / "notes.txt").read_text() == "mine"
    (tmp_path / "data" / "notes.txt").unlink()
    shards = {name: digest for name, digest in digests(config.path).items() if name != "build.json"}
    assert shards.items() <= digests(plain[0].path).items()
