"""A dataset is there whole, or it is refused in one sentence."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from data_pipeline.flags import packed_flags
from data_pipeline.manifest import FILE_NAME, Manifest, ShardInfo, ShardTable, comparable
from data_pipeline.shards import SUFFIXES

TOKENS_OF_OLD = "f05034c7886b0f51b72c58089c0dbde0"


@pytest.fixture
def folder(tmp_path, write_dataset, numbered_documents):
    return write_dataset(
        tmp_path / "dataset",
        {"train": [numbered_documents([5, 6]), numbered_documents([7])], "validation": [numbered_documents([4])]},
    )


def edited(folder, **changes):
    """The manifest of a folder with some values changed."""
    return Manifest.load(folder).model_copy(update=changes)


def test_it_survives_being_saved_and_loaded(folder, tmp_path):
    manifest = Manifest.load(folder)
    manifest.save(folder)
    assert Manifest.load(folder) == manifest
    assert (manifest.num_tokens("train"), manifest.num_documents("train")) == (18, 3)
    assert (manifest.num_tokens("validation"), manifest.num_tokens("test")) == (4, 0)
    assert not list(folder.glob("*.tmp"))


def test_a_folder_without_one_is_no_dataset(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match=r"data\.path: .* holds no manifest\.json; run 'shardline data build"):
            Manifest.load(path)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"version": 1}', b"\xff\xfe"])
def test_a_broken_one_is_refused_in_one_sentence(folder, body):
    (folder / "manifest.json").write_bytes(body)
    with pytest.raises(ValueError, match=r"manifest\.json: .*shardline data build") as caught:
        Manifest.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2),
        ("version", 0),
        ("unknown", 1),
        ("vocab_size", "many"),
        ("vocab_size", 10**30),
        ("splits", {"train": [{"name": "x"}]}),
    ],
)
def test_wrong_values_are_named(folder, key, value):
    record = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**record, key: value}))
    with pytest.raises(ValueError, match=key):
        Manifest.load(folder)


@pytest.mark.parametrize("dtype", ["int32", "float32", "nonsense"])
def test_a_dtype_that_does_not_go_with_the_vocabulary_is_refused(folder, dtype):
    edited(folder, dtype=dtype).save(folder)
    with pytest.raises(ValueError, match=f"dtype {dtype} does not go with vocab_size 1000"):
        Manifest.load(folder)


def test_loading_looks_at_no_shard(folder):
    for path in [*folder.glob("train*"), *folder.glob("validation*")]:
        path.unlink()
    assert Manifest.load(folder).num_documents("train") == 3


def test_what_is_kept_of_a_shard_is_less_than_a_hundred_bytes(tmp_path):
    count = 20_000
    digest = "0123456789abcdef" * 2
    rows = [
        ShardInfo(
            name=f"train-{number:05d}",
            num_documents=number,
            num_tokens=2 * number,
            source_bytes=8 * number,
            checksums={f"train-{number:05d}{suffix}": digest for suffix in SUFFIXES},
        )
        for number in range(count)
    ]
    table = ShardTable.of(rows)
    assert len(pickle.dumps(table)) < 100 * count
    assert [table[number] for number in (0, 7, count - 1)] == [rows[number] for number in (0, 7, count - 1)]
    assert list(table[5:9]) == rows[5:9]


def test_the_manifest_handed_on_is_the_same(folder):
    manifest = Manifest.load(folder)
    again = pickle.loads(pickle.dumps(manifest))
    assert again == manifest
    assert again.fingerprints == manifest.fingerprints
    assert again.model_dump_json() == manifest.model_dump_json()


def without(checksums, ending):
    return {name: digest for name, digest in checksums.items() if not name.endswith(ending)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda sums: without(sums, ".sums"), r"splits\.train: train-00001\.sums has no checksum"),
        (lambda sums: without(sums, ".bin"), r"train-00001\.bin has no checksum"),
        (lambda sums: {}, r"train-00001\.bin has no checksum"),
        (lambda sums: {**sums, "train-00001.sums": "x" * 32}, r"the checksum of train-00001\.sums is 'x+', not 32 hex"),
        (lambda sums: {**sums, "train-00001.sums": "0" * 5000}, r"the checksum of train-00001\.sums is '0{40}', not"),
        (lambda sums: {**sums, "other.bin": "0" * 32}, r"shard train-00001 has a checksum of other\.bin"),
    ],
)
def test_every_file_of_every_shard_must_have_its_checksum(folder, change, words):
    record = json.loads((folder / "manifest.json").read_text())
    shard = record["splits"]["train"][1]
    shard["checksums"] = change(shard["checksums"])
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=words):
        Manifest.load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bos_id": 1000}, "bos_id: 1000 is not in a vocabulary of 1000 ids"),
        ({"eos_id": -1}, "eos_id: -1 is not in"),
        ({"special_ids": {"mask": 70_000}}, r"special_ids\.mask: 70000 is not in"),
        ({"first_sentinel_id": 990, "num_sentinels": 11}, "the last sentinel: 1000 is not in"),
        ({"first_sentinel_id": 9, "num_sentinels": 11, "sentinel_step": -1}, "the last sentinel: -1 is not in"),
        ({"num_sentinels": 11}, "first_sentinel_id None does not go with 11 sentinels"),
        ({"word_starts": "abc"}, "word_starts: not packed flags"),
        ({"word_ends": packed_flags(np.zeros(900, bool))}, "word_ends: not packed flags of 1000 ids"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(folder, changes, words):
    edited(folder, **changes).save(folder)
    with pytest.raises(ValueError, match=rf"manifest\.json: {words}.*; restore the file, or delete") as caught:
        Manifest.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["num_documents", "num_tokens", "source_bytes"])
def test_counts_beyond_all_bounds_are_refused(folder, key):
    record = json.loads((folder / "manifest.json").read_text())
    record["splits"]["train"][0][key] = 10**30
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"splits\.train\.0\.{key}: "):
        Manifest.load(folder)


def test_a_shard_is_in_one_split_alone(folder):
    manifest = Manifest.load(folder)
    manifest.model_copy(update={"splits": {**manifest.splits, "validation": manifest.splits["train"]}}).save(folder)
    with pytest.raises(ValueError, match=r"splits\.validation: shard train-00000 is there already"):
        Manifest.load(folder)


# ---- fingerprints


def renamed(table):
    """The same shards by other names."""
    return ShardTable.of(
        [
            shard.model_copy(
                update={"name": f"x{shard.name}", "checksums": {f"x{name}": s for name, s in shard.checksums.items()}}
            )
            for shard in table
        ]
    )


def changed(manifest, update):
    """Which fingerprints an update changes."""
    after = manifest.model_copy(update=update).fingerprints
    return {name for name, value in manifest.fingerprints.items() if after[name] != value}


def test_the_fingerprint_of_training_is_that_of_all_that_decides_its_batches(folder):
    manifest = Manifest.load(folder)
    train, validation = manifest.splits["train"], manifest.splits["validation"]
    same = [
        {"counts": {}},
        {"config_fingerprint": "other"},
        {"splits": {"train": renamed(train), "validation": validation}},
    ]
    tokens = [
        {"tokenizer_fingerprint": "other"},
        {"vocab_size": 1001},
        {"splits": {"train": train[::-1], "validation": validation}},
        {"splits": {"train": train[:1], "validation": validation}},
        {"splits": {"train": validation, "validation": train}},
    ]
    ids = [
        {"bos_id": 7},
        {"eos_id": 7},
        {"special_ids": {"mask": 4}},
        {"first_sentinel_id": 10, "num_sentinels": 20},
        {"first_sentinel_id": 30, "num_sentinels": 20, "sentinel_step": -1},
        {"word_starts": packed_flags(np.ones(1000, bool))},
        {"word_ends": packed_flags(np.ones(1000, bool))},
    ]
    assert not any(changed(manifest, update) for update in same)
    assert all({"tokens", "training"} <= changed(manifest, update) for update in tokens)
    assert all(changed(manifest, update) == {"training", "evaluation"} for update in ids)
    prints = {manifest.model_copy(update=update).fingerprint for update in tokens + ids}
    assert len(prints) == len(tokens + ids)


def test_the_fingerprint_of_evaluation_is_that_of_what_is_held_out(folder):
    manifest = Manifest.load(folder)
    train, validation = manifest.splits["train"], manifest.splits["validation"]
    for splits in (
        {"train": train},
        {"train": train, "validation": validation[:0]},
        {"train": train, "validation": renamed(train)},
        {"train": train, "test": validation},
    ):
        assert changed(manifest, {"splits": splits}) == {"evaluation"}


def test_other_sums_of_the_same_shard_are_noticed(folder):
    manifest = Manifest.load(folder)
    digests = manifest.splits["train"].digests.copy()
    digests[1, 2] += 1
    train = dataclasses.replace(manifest.splits["train"], digests=digests)
    assert changed(manifest, {"splits": {**manifest.splits, "train": train}}) == {"training"}


def test_what_old_checkpoints_keep_is_still_compared(tmp_path, write_dataset, numbered_documents):
    folder = write_dataset(tmp_path, {"train": [numbered_documents([5, 6])], "validation": [numbered_documents([4])]})
    prints = Manifest.load(folder).fingerprints
    assert prints["tokens"] == TOKENS_OF_OLD  # as the releases before wrote it
    assert comparable(TOKENS_OF_OLD, prints) == ({"tokens": TOKENS_OF_OLD}, {"tokens": TOKENS_OF_OLD})
    then, now = comparable("another", prints)
    assert then != now
    assert comparable(prints, {**prints, "evaluation": "x"})[0]["evaluation"] == prints["evaluation"]


def test_a_failed_save_keeps_the_old_one(folder, monkeypatch):
    before = Manifest.load(folder)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        edited(folder, counts={}).save(folder)
    assert Manifest.load(folder) == before
    assert not list(folder.glob("*.tmp"))


def test_shards_of_sources_that_are_not_there_and_names_that_stand_twice_are_refused(tmp_path, write_dataset):
    folder = write_dataset(tmp_path, {"train": [[[1, 2]], [[1, 5, 2]]]}, sources={"train": ["a", "b"]})
    tree = json.loads((folder / FILE_NAME).read_text())
    for sources, words in (
        (tree["sources"][:1], "splits.train: a shard of source 1"),
        ([{"name": "a"}] * 2, "one name"),
    ):
        (folder / FILE_NAME).write_text(json.dumps({**tree, "sources": sources}))
        with pytest.raises(ValueError, match=words):
            Manifest.load(folder)


def test_sources_decide_no_fingerprint(tmp_path, write_dataset):
    folder = write_dataset(tmp_path, {"train": [[[1, 2]], [[1, 5, 2]]]}, sources={"train": ["a", "b"]})
    told, untold = Manifest.load(folder), json.loads((folder / FILE_NAME).read_text())
    del untold["sources"]
    for shard in untold["splits"]["train"]:
        del shard["source"]
    (folder / FILE_NAME).write_text(json.dumps(untold))
    assert Manifest.load(folder).fingerprints == told.fingerprints
