"""What is wrong with a build's sources, folder or machine is one sentence, and spoils nothing."""

import errno
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.building import build, passes, tasks
from data_pipeline.building.build import build_dataset
from data_pipeline.building.source_files import list_files
from data_pipeline.tokenizer import Tokenizer
from tests.data_pipeline.building.builds import digests, settings, write_json_lines

pytestmark = pytest.mark.usefixtures("ray_session")


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
    ("module", "name", "file"),
    [(passes, "hash_task", ".shardline-build/hashes-00003.npy"), (build, "tokenize_task", "train-00003.bin")],
)
def test_a_full_disk_is_an_oserror_and_room_lets_the_build_go_on(
    plain, tokenizer_config, corpus_file, tmp_path, monkeypatch, module, name, file
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
        patch.setattr(module, name, on_a_full_disk)
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
    units = build.plan_units(list_files(config.sources), config.sources, 10**6)
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
    units = build.plan_units(list_files(config.sources), config.sources, 10**6)
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
