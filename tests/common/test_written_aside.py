import errno
import os

import numpy as np
import pytest

from common.files import meant_name, naming, sweep, temporary_name, written_aside
from data_pipeline.shards import SUFFIXES, ShardReader, ShardWriter


def test_two_attempts_at_a_file_never_share_a_temporary_one(tmp_path):
    path = tmp_path / "a.json"
    with written_aside(path) as first:
        first.write(b"first")
        with written_aside(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_two_writers_of_a_shard_leave_it_whole(tmp_path):
    tokens, lengths = np.arange(1, 1001), np.full(10, 100)
    with ShardWriter(tmp_path / "shard", 2000) as slow:
        slow.add(tokens[:300], lengths[:3])
        with ShardWriter(tmp_path / "shard", 2000) as fast:
            fast.add(tokens, lengths)
        slow.add(tokens[300:], lengths[3:])
    reader = ShardReader(tmp_path / "shard")
    reader.check_all()
    assert np.array_equal(reader.tokens(0, 1000), tokens)
    assert {path.name for path in tmp_path.iterdir()} == {"shard" + suffix for suffix in SUFFIXES}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), written_aside(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_an_error_of_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space") as caught, naming(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "a")


def test_only_temporary_files_are_swept(tmp_path):
    name = temporary_name(tmp_path / "train-00000.bin")
    assert meant_name(name.name) == "train-00000.bin"
    for path in (name, tmp_path / "mine.tmp", tmp_path / "a.1-2.tmp"):
        path.touch()
    sweep(tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"mine.tmp", "a.1-2.tmp"}
