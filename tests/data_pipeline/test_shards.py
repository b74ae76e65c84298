"""Shards are Megatron's, byte for byte, and every change of a byte is noticed before a token is handed out."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from data_pipeline.shards import BLOCK, SUFFIXES, ShardReader, ShardWriter, shard_sizes, token_dtype, write_sums


def written(prefix, lengths, vocab_size=1000, chunks=1):
    """Writes documents of random tokens in several calls; returns the writer and the documents."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, vocab_size, length) for length in lengths]
    with ShardWriter(prefix, vocab_size) as writer:
        for part in np.array_split(np.arange(len(documents)), chunks):
            chosen = [documents[i] for i in part]
            writer.add(np.concatenate([np.zeros(0, int), *chosen]), np.array([len(d) for d in chosen], dtype=int))
    return writer, documents


def flip(path, offset):
    """Changes one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


@pytest.fixture
def large(tmp_path):
    """A shard of several blocks in both files."""
    prefix = tmp_path / "shard"
    _, documents = written(prefix, np.random.default_rng(1).integers(2, 40, 9000).tolist())
    return prefix, documents


@pytest.mark.parametrize("vocab_size", [1000, 65499, 65500, 200_000])
def test_megatron_reads_what_we_write(tmp_path, vocab_size):
    _, documents = written(tmp_path / "shard", [5, 1, 700, 3, 2], vocab_size, chunks=3)
    theirs = IndexedDataset(str(tmp_path / "shard"))
    assert len(theirs) == len(documents)
    assert theirs.document_indices.tolist() == list(range(len(documents) + 1))
    assert theirs.index.dtype == DType.optimal_dtype(vocab_size)
    for mine, document in zip(theirs, documents, strict=True):
        assert mine.tolist() == document.tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_our_bytes_are_megatrons_bytes(tmp_path, dtype):
    vocab_size = 1000 if dtype == np.uint16 else 100_000
    _, documents = written(tmp_path / "ours", [4, 9, 1, 30], vocab_size)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in documents:
        builder.add_document(torch.from_numpy(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


def test_a_shard_of_megatron_is_refused_until_its_sums_are_written(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    builder.add_document(torch.tensor([3, 1, 4]), [3])
    builder.add_document(torch.tensor([1, 5]), [2])
    builder.finalize(str(tmp_path / "theirs.idx"))
    with pytest.raises(ValueError, match=r"theirs\.sums: no such file.*copy it from where"):
        ShardReader(tmp_path / "theirs")
    assert ShardReader(tmp_path / "theirs", checked=False).tokens(1, 5).tolist() == [1, 4, 1, 5]
    write_sums(tmp_path / "theirs")
    reader = ShardReader(tmp_path / "theirs")
    assert (reader.num_documents, reader.num_tokens) == (2, 5)
    assert reader.boundaries(0, 5).tolist() == [0, 3]
    flip(tmp_path / "theirs.bin", 4)
    with pytest.raises(ValueError, match=r"theirs\.bin"):
        ShardReader(tmp_path / "theirs").tokens(0, 1)


def test_a_shard_with_documents_of_several_sequences_is_refused(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    builder.add_document(torch.tensor([3, 1, 4, 1]), [2, 2])
    builder.finalize(str(tmp_path / "theirs.idx"))
    with pytest.raises(ValueError, match="one sequence per document"):
        write_sums(tmp_path / "theirs")


def test_a_foreign_index_that_does_not_cover_its_tokens_gets_no_sums(tmp_path):
    written(tmp_path / "shard", [4, 5, 6])
    (tmp_path / "shard.sums").unlink()
    flip(tmp_path / "shard.idx", 34)
    with pytest.raises(ValueError, match=r"shard\.idx.*one after the other"):
        write_sums(tmp_path / "shard")
    assert not (tmp_path / "shard.sums").exists()


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(1, 5), st.data())
def test_any_range_gives_its_tokens_and_borders(tmp_path_factory, lengths, chunks, data):
    prefix = tmp_path_factory.mktemp("any") / "shard"
    writer, documents = written(prefix, lengths, chunks=chunks)
    reader = ShardReader(prefix)
    everything = np.concatenate([np.zeros(0, int), *documents])
    starts = np.cumsum([0, *lengths])[:-1]
    assert (reader.num_documents, reader.num_tokens) == (writer.num_documents, writer.num_tokens)
    start = data.draw(st.integers(0, len(everything)))
    stop = data.draw(st.integers(start, len(everything)))
    assert reader.tokens(start, stop).tolist() == everything[start:stop].tolist()
    assert reader.boundaries(start, stop).tolist() == [s for s in starts if start <= s < stop]
    if start < stop:
        pieces = reader.divide(np.array([start, start]), np.array([stop, stop]))
        inside = [s for s in starts if start < s < stop]
        assert pieces.starts.tolist() == inside * 2
        assert pieces.counts.tolist() == [len(inside)] * 2
        assert pieces.begins.tolist() == [start in starts] * 2
        assert pieces.ends.tolist() == [stop in {*starts, len(everything)}] * 2


@pytest.mark.parametrize("checked", [True, False])
def test_borders_are_found_in_every_block(large, checked):
    prefix, documents = large
    reader = ShardReader(prefix, checked=checked)
    starts = np.cumsum([0] + [len(d) for d in documents])[:-1]
    assert reader.boundaries(0, reader.num_tokens).tolist() == starts.tolist()
    for start in range(0, reader.num_tokens - 700, 701):
        expected = starts[(starts >= start) & (starts < start + 700)]
        assert reader.boundaries(start, start + 700).tolist() == expected.tolist()


def test_the_same_documents_give_the_same_bytes_however_they_are_added(tmp_path):
    first, _ = written(tmp_path / "a" / "shard", [3] * 50000, chunks=1)
    second, _ = written(tmp_path / "b" / "shard", [3] * 50000, chunks=77)
    assert first.checksums == second.checksums
    for name in first.checksums:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_sizes_of_files_follow_from_the_counts(large):
    prefix, documents = large
    sizes = shard_sizes(len(documents), sum(map(len, documents)), token_dtype(1000))
    assert sizes == {suffix: prefix.with_name(f"shard{suffix}").stat().st_size for suffix in SUFFIXES}
    assert sizes[".bin"] > 3 * BLOCK
    assert sizes[".idx"] > 2 * BLOCK


@given(st.sampled_from([".bin", ".idx"]), st.floats(0, 1, exclude_max=True))
def test_any_changed_byte_is_found_and_named(tmp_path_factory, suffix, place):
    prefix = tmp_path_factory.mktemp("flip") / "shard"
    written(prefix, [30] * 4000)
    path = prefix.with_name(f"shard{suffix}")
    offset = int(place * path.stat().st_size)
    flip(path, offset)
    block = offset // BLOCK * BLOCK
    with pytest.raises(ValueError, match=rf"shard\{suffix}: checksum mismatch in bytes {block} to "):
        ShardReader(prefix).check_all()


def test_a_damaged_block_stops_those_who_touch_it_and_nobody_else(large):
    prefix, documents = large
    flip(prefix.with_name("shard.bin"), 2 * BLOCK + 7)
    reader = ShardReader(prefix)
    everything = np.concatenate(documents)
    assert reader.tokens(0, BLOCK).tolist() == everything[:BLOCK].tolist()
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"shard\.bin.*bytes {2 * BLOCK} to {3 * BLOCK - 1}"):
            reader.tokens(BLOCK - 1, BLOCK + 1)


def test_a_damaged_index_never_gives_wrong_borders(large):
    prefix, documents = large
    right = np.cumsum([0] + [len(d) for d in documents])[:-1]
    size = prefix.with_name("shard.idx").stat().st_size
    original = prefix.with_name("shard.idx").read_bytes()
    for offset in np.random.default_rng(3).integers(34, size, 60).tolist():
        flip(prefix.with_name("shard.idx"), offset)
        reader = refused = None
        try:
            reader = ShardReader(prefix)
            for start in range(0, reader.num_tokens - 2000, 9973):
                expected = right[(right >= start) & (right < start + 2000)]
                assert reader.boundaries(start, start + 2000).tolist() == expected.tolist()
        except ValueError as error:
            refused = error
        assert refused is None or "shard.idx: checksum mismatch" in str(refused)
        prefix.with_name("shard.idx").write_bytes(original)


def test_damage_in_the_middle_of_a_wide_range_of_documents_is_found(tmp_path):
    count = 30_000
    with ShardWriter(tmp_path / "shard", 10) as writer:
        writer.add(np.ones(count, int), np.ones(count, int))
    flip(tmp_path / "shard.idx", 34 + 4 * count + 8 * (count // 2))
    whole = np.array([0]), np.array([count])
    for read in (
        lambda: ShardReader(tmp_path / "shard").boundaries(0, count),
        lambda: ShardReader(tmp_path / "shard").divide(*whole),
    ):
        with pytest.raises(ValueError, match=r"shard\.idx: checksum mismatch"):
            read()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_named(large, suffix):
    prefix, _ = large
    prefix.with_name(f"shard{suffix}").unlink()
    with pytest.raises(ValueError, match=rf"shard\{suffix}: no such file"):
        ShardReader(prefix)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_truncated_file_is_refused_when_it_is_opened(large, suffix, kept):
    prefix, _ = large
    path = prefix.with_name(f"shard{suffix}")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"shard\{suffix}"):
        ShardReader(prefix)


def test_changed_checksums_are_named_as_such(large):
    prefix, _ = large
    flip(prefix.with_name("shard.sums"), 50)
    with pytest.raises(ValueError, match=r"shard\.sums: checksum mismatch"):
        ShardReader(prefix)


def test_another_shard_of_the_same_size_is_not_taken_for_it(tmp_path):
    first, _ = written(tmp_path / "first", [9] * 100)
    with ShardWriter(tmp_path / "second", 1000) as writer:
        writer.add(np.zeros(900, int), np.full(100, 9))
    for suffix in SUFFIXES:
        shutil.copy(tmp_path / f"second{suffix}", tmp_path / f"first{suffix}")
    with pytest.raises(ValueError, match="not the file its manifest describes"):
        ShardReader(tmp_path / "first", sums_digest=bytes.fromhex(first.checksums["first.sums"]))


def test_a_file_of_another_format_is_refused(tmp_path):
    for suffix in (".bin", ".idx"):
        (tmp_path / f"shard{suffix}").write_bytes(b"no shard at all, but long enough to be one" * 3)
    with pytest.raises(ValueError, match="not a Megatron index"):
        ShardReader(tmp_path / "shard", checked=False)


def test_an_empty_shard_can_be_written_and_read(tmp_path):
    written(tmp_path / "shard", [])
    reader = ShardReader(tmp_path / "shard")
    assert (reader.num_documents, reader.num_tokens) == (0, 0)
    assert reader.boundaries(0, 0).tolist() == []
    reader.check_all()


def test_an_error_while_writing_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "shard", 1000) as writer:
        writer.add(np.arange(5), np.array([5]))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_finishing_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), ShardWriter(tmp_path / "shard", 1000) as writer:
        writer.add(np.arange(5), np.array([5]))
        monkeypatch.setattr("os.fsync", full)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        ([1, 2, 1000], [3], "token id 1000 is not in a vocabulary of 1000"),
        ([1, -1], [2], "token id -1"),
        ([1, 2], [2, 0], "0 to 2 tokens"),
        ([1, 2], [3], "add up to 3, but there are 2"),
    ],
)
def test_documents_that_cannot_be_are_refused(tmp_path, tokens, lengths, message):
    with pytest.raises(ValueError, match=message), ShardWriter(tmp_path / "shard", 1000) as writer:
        writer.add(np.array(tokens), np.array(lengths))
    assert list(tmp_path.iterdir()) == []
