"""What is looked at before a run begins: that the files are there and the ids are the tokenizer's."""

import json
import os

import pytest

from data_pipeline.building.folder import fingerprint
from data_pipeline.manifest import Manifest, ShardInfo, ShardTable
from data_pipeline.opening import check_files, open_dataset, read_dataset
from data_pipeline.shards import ShardWriter

FILES = ["train-00001.bin", "train-00000.idx", "validation-00000.sums"]


@pytest.fixture
def folder(tmp_path, write_dataset, numbered_documents):
    return write_dataset(
        tmp_path / "dataset",
        {"train": [numbered_documents([5, 6]), numbered_documents([7])], "validation": [numbered_documents([4])]},
    )


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found_by_the_listing(folder, name):
    assert open_dataset(folder) == Manifest.load(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: no such file, though manifest.json names it"):
        open_dataset(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found_where_sizes_are_asked_for(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    check_files(folder, open_dataset(folder))
    with pytest.raises(ValueError, match=rf"{name}: \d+ bytes where \d+ were written"):
        check_files(folder, Manifest.load(folder), sizes=True)


@pytest.fixture
def asked(monkeypatch):
    """Calls that ask a file system about names."""
    calls = []

    def noting(name, of):
        return lambda path, *args, **options: (calls.append((name, str(path))), of(path, *args, **options))[1]

    for name in ("stat", "lstat", "scandir", "listdir"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    return calls


def test_a_launcher_lists_the_folder_once_and_asks_no_shard_for_its_size(folder, asked):
    check_files(folder, Manifest.load(folder))
    assert [call for call in asked if str(folder) in call[1]] == [("scandir", str(folder))]


def test_a_rank_looks_no_shard_up(folder, asked):
    (folder / FILES[0]).unlink()
    assert read_dataset(folder) == Manifest.load(folder)
    assert not [call for call in asked if call[0] in ("scandir", "listdir") or "train" in call[1]]


@pytest.fixture
def real(tmp_path, tokenizer):
    """A dataset of some documents by a real tokenizer."""
    with ShardWriter(tmp_path / "data" / "train-00000", tokenizer.vocab_size) as shard:
        shard.add(*tokenizer.encode_documents(["one text", "and another"]))
    counts = {"num_documents": shard.num_documents, "num_tokens": shard.num_tokens, "source_bytes": 19}
    table = ShardTable.of([ShardInfo(name="train-00000", checksums=shard.checksums, **counts)])
    Manifest(**tokenizer.record(), config_fingerprint=fingerprint({}), splits={"train": table}).save(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bos_id", 5),
        ("eos_id", 5),
        ("special_ids", {"unk": 0, "pad": 3, "mask": 5}),
        ("first_sentinel_id", 11),
        ("num_sentinels", 31),
        ("word_starts", None),
    ],
)
def test_ids_that_are_not_the_tokenizers_are_refused(real, tokenizer, key, value):
    open_dataset(real, tokenizer.model_path.parent)
    record = json.loads((real / "manifest.json").read_text())
    (real / "manifest.json").write_text(json.dumps({**record, key: value}))
    with pytest.raises(ValueError, match=rf"manifest\.json: {key}\S* is .* in .*tokenizer\.model; restore the file"):
        open_dataset(real, tokenizer.model_path.parent)


def test_of_special_ids_the_one_that_differs_is_named(real, tokenizer):
    record = json.loads((real / "manifest.json").read_text())
    record["special_ids"]["mask"] = 9
    (real / "manifest.json").write_text(json.dumps(record))
    ours = tokenizer.special_ids["mask"]
    with pytest.raises(ValueError, match=rf"special_ids\.mask is 9 and {ours} in .*tokenizer\.model; restore"):
        open_dataset(real, tokenizer.model_path.parent)


def test_what_a_dataset_of_old_does_not_tell_is_not_compared(real, tokenizer):
    record = json.loads((real / "manifest.json").read_text())
    old = {key: value for key, value in record.items() if key not in ("word_starts", "word_ends", "special_ids")}
    (real / "manifest.json").write_text(json.dumps(old))
    open_dataset(real, tokenizer.model_path.parent)


def test_another_tokenizer_than_the_datasets_is_refused_and_none_is_not(folder, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.path: .* is not the tokenizer that .*dataset was built with"):
        open_dataset(folder, tokenizer.model_path.parent)
    open_dataset(folder, tmp_path)
