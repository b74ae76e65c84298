"""At most so many ranks write at once."""

import threading
import time

import pytest

from common.mistakes import Mistake
from tests.training.state.ranks import on_ranks
from training.state import writers


class Disk:
    """Remembers how many wrote at once, and who in what order."""

    def __init__(self):
        self.lock, self.now, self.most, self.order = threading.Lock(), 0, 0, []

    def write(self, rank: int) -> int:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(rank)
        time.sleep(0.05)
        with self.lock:
            self.now -= 1
        return rank


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (2, 2), (3, 3), (7, 5), (None, 5)])
def test_no_more_ranks_write_at_once_than_may_and_each_gets_its_own_result(tmp_path, limit, most):
    disk = Disk()
    found = on_ranks(5, lambda world: writers.in_turns(world, tmp_path, limit, lambda: disk.write(world.rank)))
    assert found == [0, 1, 2, 3, 4]
    assert disk.most <= most and sorted(disk.order) == [0, 1, 2, 3, 4]


def test_on_nfs_there_is_a_limit_though_none_is_set(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "file_system_of", lambda path: "nfs4")
    monkeypatch.setattr(writers, "ON_NFS", 1)
    disk = Disk()
    on_ranks(3, lambda world: writers.in_turns(world, tmp_path, None, lambda: disk.write(world.rank)))
    assert (disk.most, disk.order) == (1, [0, 1, 2])


def test_an_error_is_raised_on_every_rank_and_no_later_turn_begins(tmp_path):
    disk = Disk()

    def write(world):
        disk.write(world.rank)
        if world.rank == 1:
            raise Mistake("no room")

    found = on_ranks(4, lambda world: writers.in_turns(world, tmp_path, 2, lambda: write(world)))
    assert [str(error) for error in found] == ["no room"] * 4
    assert sorted(disk.order) == [0, 1, 2, 3]
    disk.order.clear()
    found = on_ranks(4, lambda world: writers.in_turns(world, tmp_path, 1, lambda: write(world)))
    assert [str(error) for error in found] == ["no room"] * 4
    assert disk.order == [0, 1]
