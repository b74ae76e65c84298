"""Datasets of Hugging Face's library, written by it, and arrow's two formats by pyarrow."""

import json
import subprocess
import sys

import pyarrow as pa
import pytest

from common.mistakes import is_mistake
from data_pipeline.building.source_files import list_files
from data_pipeline.config import SourceConfig
from tests.data_pipeline.building.reads import parts_of, read_all

TEXTS = [f"document {number} " * (number % 50 + 1) for number in range(4000)]


WRITE = """
import json, os, sys
import datasets

folder, texts = sys.argv[1], json.load(open(sys.argv[1] + "/texts.json"))
whole = datasets.Dataset.from_dict({"number": range(len(texts)), "text": texts})
whole.save_to_disk(folder + "/saved", num_shards=3)
datasets.DatasetDict({"train": whole, "test": whole.select(range(9))}).save_to_disk(folder + "/splits")
with open(folder + "/lines.jsonl", "w") as file:
    file.writelines(json.dumps({"text": text}) + chr(10) for text in texts)
for name, splits in (("one", ["train"]), ("two", ["train", "test"])):
    files = dict.fromkeys(splits, folder + "/lines.jsonl")
    cached = datasets.load_dataset("json", data_files=files, cache_dir=folder + "/" + name)
    cached["train"].filter(lambda record: "9" in record["text"])  # leaves a file of its own in the cache
assert datasets.load_from_disk(folder + "/saved")["text"][:] == texts
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A dataset, a dictionary of two and two caches, as `datasets` writes them in a process of its own."""
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    done = subprocess.run([sys.executable, "-c", WRITE, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def cache_of(folder):
    return str(next(folder.glob("**/dataset_info.json")).parent)


@pytest.mark.parametrize("unit_bytes", [10**9, 100_000])
def test_a_saved_dataset_is_a_source_by_its_folder_alone(saved, unit_bytes):
    source = SourceConfig(path=str(saved / "saved"))
    texts, rejects = read_all(source, unit_bytes)
    assert texts == TEXTS
    assert not rejects.counts
    assert [len(parts) > 3 for parts in [parts_of(source, unit_bytes)]] == [unit_bytes < 10**9]
    assert read_all(SourceConfig(path=f"file://{saved}/saved/", format="arrow"))[0] == TEXTS


def test_a_cache_is_read_without_what_its_owner_filtered_out_of_it(saved):
    source = SourceConfig(path=cache_of(saved / "one"))
    assert read_all(source, 50_000)[0] == TEXTS


def test_of_several_splits_one_has_to_be_named(saved):
    with pytest.raises(ValueError, match=r"splits: holds the splits train, test; name one, such as '.*/splits/train'"):
        list_files([SourceConfig(path=str(saved / "splits"))])
    assert read_all(SourceConfig(path=str(saved / "splits" / "test")))[0] == TEXTS[:9]
    cache = cache_of(saved / "two")
    with pytest.raises(
        ValueError, match=r"holds the splits train, test; name the files of one, .*json-train\*\.arrow'"
    ):
        list_files([SourceConfig(path=cache)])
    assert read_all(SourceConfig(path=f"{cache}/json-train*.arrow"))[0] == TEXTS


def test_a_file_of_a_dataset_that_is_gone_is_named(saved, tmp_path):
    for name in ("state.json", "data-00000-of-00003.arrow"):
        (tmp_path / name).write_bytes((saved / "saved" / name).read_bytes())
    with pytest.raises(ValueError, match=r"lacks data-00001-of-00003\.arrow, which it says it consists of"):
        list_files([SourceConfig(path=str(tmp_path))])
    (tmp_path / "state.json").write_text('{"_data_files": 3}')
    with pytest.raises(ValueError, match=r"state\.json: does not describe a dataset, for its _data_files is a number"):
        list_files([SourceConfig(path=str(tmp_path))])


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_both_formats_give_the_same_in_parts_as_whole(tmp_path, kind, dictionary):
    column = pa.array([None, *TEXTS[:999]]).dictionary_encode() if dictionary else pa.array([None, *TEXTS[:999]])
    table = pa.table({"meta": pa.StructArray.from_arrays([column], ["text"]), "other": range(1000)})
    write = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with write(tmp_path / "a.arrow", table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=70)
    source = SourceConfig(path=str(tmp_path / "a.arrow"), text_key="meta.text")
    for unit_bytes in (10**9, 1000):
        texts, rejects = read_all(source, unit_bytes)
        assert texts == TEXTS[:999]
        assert rejects.by_reason() == {"missing_text": 1}
    assert (len(parts_of(source, 1000)) == 1) == dictionary


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("unit_bytes", [10**9, 1000])
def test_a_file_that_is_none_or_breaks_off_is_one_sentence(tmp_path, kind, unit_bytes):
    table = pa.table({"text": TEXTS[:500]})
    write = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with write(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    whole = (tmp_path / "a.arrow").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:300], b"no arrow at all, only text " * 90, whole[:9], b""):
        (tmp_path / "b.arrow").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.arrow: not a readable arrow file \(.*\); fetch it again") as caught:
            read_all(SourceConfig(path=str(tmp_path / "b.arrow")), unit_bytes)
        assert is_mistake(caught.value)
    with pytest.raises(ValueError, match=r"a\.arrow: no column 'body' \(it has text\); set text_key of its source"):
        read_all(SourceConfig(path=str(tmp_path / "a.arrow"), text_key="body"), unit_bytes)
