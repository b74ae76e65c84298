"""A split is one row of tokens: every target comes exactly once, and pieces never cross documents or get lost."""

import resource
import tracemalloc
import weakref
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline import shards
from data_pipeline.reading import dataset as module
from tests.data_pipeline.opened import opened

SHARDS = st.lists(st.lists(st.integers(1, 12), max_size=8), min_size=1, max_size=4)


def expected_pieces(documents, start, stop):
    """The parts of documents within tokens [start, stop) of them all, each with whether it is cut."""
    pieces, at = [], 0
    for document in documents:
        part = document[max(start - at, 0) : max(stop - at, 0)]
        if len(part):
            pieces.append((part.tolist(), len(part) < len(document)))
        at += len(document)
    return pieces


@pytest.fixture(scope="module")
def build(tmp_path_factory, write_dataset, numbered_documents):
    """Function (lengths of documents by shard, sequence length) -> dataset and its documents."""

    def make(shards, length, **options):
        documents = numbered_documents([n for shard in shards for n in shard])
        ends = list(accumulate(map(len, shards), initial=0))
        split = [documents[a:b] for a, b in pairwise(ends)]
        folder = write_dataset(tmp_path_factory.mktemp("dataset"), {"train": split})
        return opened(folder, "train", length, **options), documents

    return make


@given(SHARDS, st.integers(1, 15), st.booleans())
def test_samples_hold_the_pieces_of_documents_in_their_window(build, shards, length, keep_tail):
    dataset, documents = build(shards, length, keep_tail=keep_tail)
    indices = np.arange(len(dataset))[::-1]
    found = dataset.read(dataset.locate(indices))
    pieces = list(zip((piece.tolist() for piece in found.split()), found.is_cut.tolist(), strict=True))
    assert found.tokens.dtype == np.uint16
    assert len(found.num_pieces) == len(dataset)
    at = 0
    for index, count in zip(indices, found.num_pieces, strict=True):
        start = index * length
        assert pieces[at : at + count] == expected_pieces(documents, start, start + length + 1)
        at += count
    assert at == len(found.lengths)


@given(SHARDS, st.integers(1, 15), st.booleans())
def test_over_an_epoch_every_token_but_the_first_of_each_document_is_a_target_once(build, shards, length, keep_tail):
    dataset, documents = build(shards, length, keep_tail=keep_tail)
    total = sum(map(len, documents))
    targets = [token for index in range(len(dataset)) for piece in dataset.sample(index) for token in piece[1:]]
    covered = total - dataset.num_unused_tokens
    expected = [token for document in documents for token in document[1:] if token <= covered]
    assert targets == expected
    assert len(dataset) == (-(-max(total - 1, 0) // length) if keep_tail else max(total - 1, 0) // length)
    assert dataset.num_unused_tokens <= (0 if keep_tail else length - 1)


def test_parts_of_what_was_located_can_be_read_alone(varied_dataset):
    dataset = opened(varied_dataset, "train", 33)
    indices = np.random.default_rng(0).permutation(len(dataset))[:40]
    located = dataset.locate(indices)
    whole = dataset.read(located)
    halves = [dataset.read(located, 0, 13), dataset.read(located, 13)]
    for name in ("tokens", "lengths", "is_cut", "num_pieces"):
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(half, name) for half in halves]))


def test_nothing_is_opened_before_it_is_read(varied_dataset, monkeypatch):
    monkeypatch.setattr(module, "ShardReader", None)
    dataset = opened(varied_dataset, "train", 16)
    assert len(dataset) == (dataset.num_tokens - 1) // 16


@pytest.fixture
def counted_readers(monkeypatch):
    """Names of the shards that were opened, in order, and which readers are alive."""
    names, alive = [], weakref.WeakSet()

    class Counted(module.ShardReader):
        def __init__(self, prefix, **options):
            super().__init__(prefix, **options)
            names.append(prefix.name)
            alive.add(self)

    monkeypatch.setattr(module, "ShardReader", Counted)
    return names, alive


def test_memory_and_open_files_do_not_grow_with_the_number_of_shards(build, counted_readers, monkeypatch):
    names, alive = counted_readers
    monkeypatch.setattr(module, "MAX_OPEN_SHARDS", 3)
    dataset, documents = build([[5, 6]] * 60, 4)
    before = len(list(Path("/proc/self/fd").iterdir()))
    sizes = set()
    for index in [*range(len(dataset)), *range(len(dataset))]:
        expected = expected_pieces(documents, index * 4, index * 4 + 5)
        assert [piece.tolist() for piece in dataset.sample(index)] == [tokens for tokens, _ in expected]
        assert len(alive) <= 3
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3 * 3
        # what it holds besides are the arrays of the manifest
        sizes.add(sum(len(value) for value in vars(dataset).values() if isinstance(value, dict)))
    assert max(sizes) <= 3
    assert len(names) == 2 * 60


def test_a_shard_that_stays_open_is_opened_and_checked_once(build, counted_readers, monkeypatch):
    names, _ = counted_readers
    dataset, _ = build([[5, 6]] * 10, 4)
    for index in range(len(dataset)):
        dataset.sample(index)
    monkeypatch.setattr(shards.xxhash, "xxh3_64_intdigest", None)
    for index in range(len(dataset)):
        dataset.sample(index)
    assert len(names) == 10


def test_what_is_kept_of_an_open_shard_is_small(tmp_path, write_dataset):
    tokens = np.random.default_rng(0).integers(1, 1000, 10**6)
    folder = write_dataset(tmp_path, {"train": [np.split(tokens, 1000)] * 10})
    dataset = opened(folder, "train", 999)
    dataset.sample(0)  # what is loaded once
    tracemalloc.start()
    for index in range(0, len(dataset), 500):
        dataset.sample(index)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset._open) == 10
    assert kept / 9 < 8192


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".sums"])
def test_a_truncated_or_missing_file_is_found_when_its_shard_is_first_read(build, suffix):
    dataset, _ = build([[30, 40], [50, 60]], 10)
    path = dataset.folder / f"train-00001{suffix}"
    path.write_bytes(path.read_bytes()[:-1])
    assert dataset.sample(0)
    with pytest.raises(
        ValueError, match=rf"train-00001\{suffix}: \d+ bytes where \d+ were written; the shard is damaged"
    ):
        dataset.sample(8)
    path.unlink()
    with pytest.raises(ValueError, match=rf"train-00001\{suffix}: no such file"):
        dataset.sample(8)


def test_thousands_of_shards_stay_open_where_the_system_lets_them(varied_dataset):
    dataset = opened(varied_dataset, "train", 16)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert dataset._max_open == min(4096, soft // 4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_a_flipped_byte_is_reported_with_its_file_and_place(build, offset):
    dataset, _ = build([[30, 40], [50]], 119)
    path = dataset.folder / "train-00001.bin"
    body = bytearray(path.read_bytes())
    body[offset % len(body)] ^= 1
    path.write_bytes(body)
    with pytest.raises(ValueError, match=r"train-00001\.bin: checksum mismatch in bytes 0 to 99"):
        dataset.sample(0)


def test_a_shard_exchanged_after_the_manifest_was_written_is_noticed(build, tmp_path):
    dataset, _ = build([[30, 40], [40, 30]], 10)
    for suffix in (".bin", ".idx", ".sums"):
        (dataset.folder / f"train-00000{suffix}").write_bytes((dataset.folder / f"train-00001{suffix}").read_bytes())
    with pytest.raises(ValueError, match=r"train-00000\.sums: not the file its manifest describes"):
        dataset.sample(0)


def test_an_unknown_split_is_refused_with_those_there_are(varied_dataset):
    with pytest.raises(ValueError, match="no split 'test'; it has train, validation"):
        opened(varied_dataset, "test", 8)


def test_large_vocabularies_are_read_as_int32(tmp_path, write_dataset):
    folder = write_dataset(tmp_path, {"train": [[[100_000, 7, 65_500], [8, 99_999]]]}, vocab_size=100_001)
    dataset = opened(folder, "train", 4)
    assert dataset.dtype == np.int32
    assert [piece.tolist() for piece in dataset.sample(0)] == [[100_000, 7, 65_500], [8, 99_999]]
