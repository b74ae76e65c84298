"""Which file system holds a path."""

from common.mounts import file_system_of


def test_the_file_system_of_a_path_is_that_of_the_nearest_mount():
    assert file_system_of("/proc/self") == "proc"
    assert file_system_of("/dev/shm/x/y") == "tmpfs"
