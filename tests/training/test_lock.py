"""The lock that keeps a second launch out of a run."""

import errno
import fcntl

import pytest

from training.distributed import World
from training.lock import refuse_second_writer, sole_launch, sole_writer

WORLD = World.alone()


def test_a_second_writer_is_told_who_is_there_until_the_first_leaves(tmp_path):
    words = r"process \d+ on .* is training this run already"
    with sole_writer(tmp_path, WORLD):
        with pytest.raises(ValueError, match=words):
            sole_writer(tmp_path, WORLD).__enter__()
        with pytest.raises(ValueError, match=words):
            refuse_second_writer(tmp_path)
    refuse_second_writer(tmp_path)
    with sole_writer(tmp_path, WORLD):
        pass


def test_of_two_launches_the_second_is_refused_before_ranks_of_the_first_have_read_their_config(tmp_path):
    with (
        sole_launch(tmp_path / "run"),
        pytest.raises(ValueError, match=r"process \d+ on .* is training this run already"),
    ):
        sole_launch(tmp_path / "run").__enter__()
    with sole_writer(tmp_path / "run", WORLD), pytest.raises(ValueError, match="is training this run already"):
        sole_launch(tmp_path / "run").__enter__()
    with sole_launch(tmp_path / "run"), sole_writer(tmp_path / "run", WORLD):
        pass


def test_a_file_system_without_locks_is_said_to_have_none(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with sole_writer(tmp_path, WORLD):
        pass
    assert "no locks" in caplog.text
