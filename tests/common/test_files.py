"""Files that are whole or not there."""

import errno
import fcntl
import os

import pytest
import xxhash

from common import files
from common.files import HashingWriter, checksum, folder_aside, read_file, write_whole
from common.mistakes import is_mistake


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of three pages."""
    monkeypatch.setattr(files, "STAGED_BYTES", 3 * 4096)


@pytest.mark.parametrize("size", [0, 1, 4096, 3 * 4096, 3 * 4096 + 1, 100_000])
@pytest.mark.parametrize("direct", [True, False])
def test_the_digest_is_that_of_what_lies_on_the_disk(tmp_path, small_pieces, monkeypatch, size, direct):
    path, data = tmp_path / "file", os.urandom(size)
    if not direct:
        monkeypatch.setattr(os, "O_DIRECT", 0)
    with HashingWriter(path) as file:
        for start in range(0, len(data), 7777):
            assert file.write(memoryview(data)[start : start + 7777]) == len(data[start : start + 7777])
    assert path.read_bytes() == data
    assert file.digest == checksum(path) == xxhash.xxh3_128_hexdigest(data)


@pytest.mark.parametrize("refuses", ["open", "write"])
def test_a_file_system_that_knows_no_direct_writes_gets_ordinary_ones(tmp_path, small_pieces, monkeypatch, refuses):
    real, refused = getattr(os, refuses), []

    def call(what, how, *rest):
        flags = how if refuses == "open" else fcntl.fcntl(what, fcntl.F_GETFL)
        if flags & os.O_DIRECT:
            refused.append(what)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(what, how, *rest)

    monkeypatch.setattr(os, refuses, call)
    data = os.urandom(50_000)
    with HashingWriter(tmp_path / "file") as file:
        file.write(data)
    assert (tmp_path / "file").read_bytes() == data and len(refused) == 1


def test_a_disk_that_fills_up_comes_out_as_the_oserror_it_was(tmp_path, small_pieces, monkeypatch):
    real, room = os.write, [5000]

    def write(file, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(file, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left") as caught, HashingWriter(tmp_path / "file") as file:
        file.write(bytes(100_000))
    assert caught.value.errno == errno.ENOSPC


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_whole(tmp_path / "latest", b"old")

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "latest", b"new")
    assert (tmp_path / "latest").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_what_a_killed_attempt_left_is_swept_and_what_another_is_writing_is_not(tmp_path):
    dead, alive, others = (tmp_path / f".{name}" for name in ("out.partial-1", "out.partial-2", "out2.partial-1"))
    for folder in (dead, alive, others):
        folder.mkdir()
        (folder / "weights").write_text("half")
    held = os.open(alive, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with folder_aside(tmp_path / "out") as folder:
        (folder / "weights").write_text("whole")
        with folder_aside(tmp_path / "third"):
            assert folder.exists()
    os.close(held)
    assert (tmp_path / "out" / "weights").read_text() == "whole"
    assert not dead.exists() and alive.exists() and others.exists()


@pytest.mark.parametrize("what", ["pipe", "folder", "/dev/zero"])
def test_what_is_no_file_is_an_error_of_the_user_s_and_nobody_waits_for_its_end(tmp_path, what):
    path = tmp_path / "file"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to(what)
    for read in (read_file, checksum):
        with pytest.raises(OSError, match=r"it is a (folder|pipe or a device), where a file belongs") as caught:
            read(path)
        assert is_mistake(caught.value) and caught.value.filename == str(path)


def test_a_file_is_read_as_it_is(tmp_path):
    (tmp_path / "file").write_bytes(b"a\0b")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "file") == read_file(tmp_path / "link") == b"a\0b"
