"""Token ids that megatron-core's own builder wrote, as a source."""

import itertools

import numpy as np
import pytest

from common.mistakes import is_mistake
from data_pipeline.building.build import build_dataset
from data_pipeline.building.formats import megatron
from data_pipeline.building.formats.megatron import KnownIds, read_megatron
from data_pipeline.building.source_files import list_files
from data_pipeline.building.sources import Rejects, group_tasks, plan_units
from data_pipeline.config import SourceConfig
from tests.data_pipeline.building.builds import digests, documents, settings, write_json_lines
from tests.data_pipeline.building.reads import parts_of

BOS, EOS = 1, 2
KNOWN = KnownIds(BOS, EOS, np.arange(1000))


def write_megatron(prefix, sequences, dtype=np.uint16):
    """Documents, each a list of sequences, by megatron-core."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in sequences:
        builder.add_document([token for part in document for token in part], list(map(len, document)))
    builder.finalize(f"{prefix}.idx")
    return f"{prefix}.idx"


def source_of(path):
    return SourceConfig(path=str(path), format="megatron")


def read_ids(path, unit_bytes=10**9):
    """Documents as lists of ids, those left out by reason, hashes and sizes."""
    rejects = Rejects()
    batches = [batch for unit in parts_of(source_of(path), unit_bytes) for batch in read_megatron(unit, KNOWN, rejects)]
    cuts = [np.split(batch.tokens, np.cumsum(batch.lengths)[:-1]) if len(batch.lengths) else [] for batch in batches]
    keys = [tuple(key) for batch in batches for key in batch.keys.T.tolist()]
    sizes = [size for batch in batches for size in batch.sizes.tolist()]
    return [part.tolist() for parts in cuts for part in parts], rejects.by_reason(), keys, sizes


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint8])
def test_documents_come_between_borders_whether_they_had_them_or_not(tmp_path, dtype):
    given = [[[5, 6]], [[BOS, 5, 6]], [[5, 6, EOS]], [[BOS, 5], [6], [7, EOS]], [[]], [[BOS, EOS]], [[EOS]], [[9]]]
    path = write_megatron(tmp_path / "a", given, dtype)
    found, dropped, keys, sizes = read_ids(path)
    assert found == [[BOS, 5, 6, EOS]] * 3 + [[BOS, 5, 6, 7, EOS], [BOS, 9, EOS]]
    assert dropped == {"empty": 3}
    assert len(set(keys)) == 3
    assert sizes == [sum(document) for document in found]
    assert keys == read_ids(write_megatron(tmp_path / "b", given, np.int32))[2]


def test_parts_are_the_whole_whatever_they_are_read_in(tmp_path, monkeypatch):
    generator = np.random.default_rng(3)
    given = [
        [generator.integers(3, 1000, length).tolist() for length in generator.integers(0, 30, 1 + number % 3)]
        for number in range(300)
    ]
    write_megatron(tmp_path / "a.b", given)
    expected = [[BOS, *itertools.chain(*document), EOS] for document in given if any(document)]
    for name in ("a.b.idx", "a.b.bin", "a.b", "*"):
        assert read_ids(tmp_path / name)[0] == expected
    monkeypatch.setattr(megatron, "BATCH_TOKENS", 50)
    monkeypatch.setattr(megatron, "BATCH_DOCUMENTS", 7)
    assert len(parts_of(source_of(tmp_path / "a.b"), 2000)) > 10
    assert read_ids(tmp_path / "a.b", 2000)[0] == expected


def test_a_document_beyond_all_bounds_is_dropped_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(megatron, "BATCH_TOKENS", 50)
    monkeypatch.setattr(megatron, "MAX_DOCUMENT_BYTES", 1000)
    path = write_megatron(tmp_path / "a", [[[5]], [[6] * 300], [[7]]])
    assert read_ids(path)[:2] == ([[BOS, 5, EOS], [BOS, 7, EOS]], {"too_large": 1})


def spoiled(folder, change):
    """A shard of megatron-core's, one of whose files is changed."""
    write_megatron(folder / "a", [[[5, 6], [7]], [[8, 9]]])
    change(folder)
    return folder / "a.idx"


def overwrite(name, offset, value):
    def change(folder):
        content = bytearray((folder / name).read_bytes())
        content[offset : offset + len(value)] = value
        (folder / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "a.bin").unlink(), r"a\.bin is missing; both of \.idx and \.bin are needed"),
        (lambda folder: (folder / "a.bin").write_bytes(b"xx"), r"a\.bin: 2 bytes where .* tells of others; copy both"),
        (lambda folder: (folder / "a.idx").write_bytes(b"x" * 99), r"a\.idx: is no index of Megatron-LM"),
        (lambda folder: (folder / "a.idx").open("ab").write(b"modes"), r"a\.idx: .* it holds more than tokens"),
        (overwrite("a.idx", 17, b"\x06"), r"version 1 with ids of type 6 .* version 1 with integers can"),
        (overwrite("a.idx", 34 + 12, b"\x02"), r"its sequences do not lie one after the other in \.bin"),
        (overwrite("a.idx", 34 + 36 + 8, b"\x09"), r"its documents do not divide its 3 sequences"),
        (overwrite("a.bin", 2, b"\xff\xff"), r"a\.idx: holds the id 65535, and the tokenizer's are 0 to 999; set"),
    ],
)
def test_files_that_do_not_hold_together_are_one_sentence(tmp_path, change, words):
    with pytest.raises(ValueError, match=words) as caught:
        read_ids(spoiled(tmp_path, change))
    assert is_mistake(caught.value)


def test_other_files_and_the_format_itself_have_to_be_named(tmp_path):
    write_megatron(tmp_path / "a", [[[5]]])
    with pytest.raises(ValueError, match=r"a\.idx: \.idx files are not read as they are; set format: megatron"):
        list_files([SourceConfig(path=str(tmp_path / "a.idx"))])
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(ValueError, match=r"means .*b\.txt, and format megatron reads \.idx with \.bin; name the \.idx"):
        list_files([source_of(tmp_path / "*")])


def test_a_task_holds_texts_or_tokens(tmp_path):
    write_megatron(tmp_path / "a", [[[5]]])
    write_json_lines(tmp_path / "a.jsonl", ["text"])
    sources = [SourceConfig(path=str(tmp_path / "a.jsonl")), source_of(tmp_path / "a")]
    tasks = group_tasks(plan_units(list_files(sources), sources, 1000), 1000)
    assert [[unit.format for unit in task] for task in tasks] == [["jsonl"], ["megatron"]]


@pytest.mark.usefixtures("ray_session")
def test_a_build_copies_ids_drops_copies_and_holds_documents_out(tokenizer, tokenizer_config, tmp_path):
    texts = [f"document number {number} and more of its words" for number in range(300)]
    ids = [tokenizer.encode(text).tolist() for text in texts]
    repeated = [[part] for part in [*ids, [tokenizer.bos_id, *ids[3], tokenizer.eos_id], *ids[:20]]]
    write_megatron(tmp_path / "a", repeated)
    write_json_lines(tmp_path / "a.jsonl", ["some text"] * 2)
    config = settings(tmp_path / "data", tmp_path / "a.jsonl", validation_fraction=0.2, shard_megabytes=0.003)
    config.sources.append(source_of(tmp_path / "a"))
    report = build_dataset(config, tokenizer_config)
    found = {
        split: [tokenizer.decode(part) for part in documents(config.path, split)] for split in report.manifest.splits
    }
    assert sorted(found["train"] + found["validation"]) == sorted([*texts, "some text"])
    assert [text for text in [*texts] if text in found["train"]] == [text for text in found["train"] if text in texts]
    assert 30 < len(found["validation"]) < 90
    assert report.dropped == {"repeated": 22}
    assert len(report.manifest.splits["train"]) > 3
    sizes = sum(shard.source_bytes for split in report.manifest.splits.values() for shard in split)
    assert sizes == sum(map(len, [*texts, "some text"]))
    again = config.model_copy(update={"path": str(tmp_path / "again"), "num_cpus": 1})
    build_dataset(again, tokenizer_config)
    assert digests(again.path) == digests(config.path)
