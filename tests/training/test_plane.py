"""Agreement from host to host: right values, in order, at a cost that does not grow, and never a silent wait."""

import socket
import threading
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.training.planes import in_threads
from training.plane import FAN_OUT, PeerLost, Plane, children_of, parent_of


@pytest.mark.parametrize("size", [1, 2, 3, 17, 18, 60])
def test_all_exchanges_give_every_rank_what_they_promise(size):
    def talk(world):
        plane = world.plane
        early = plane.begin_sum([world.rank, 0.5])  # its result is asked for last
        assert plane.max([world.rank, -world.rank]) == [size - 1, 0]
        assert plane.from_main({"said": world.rank}) == {"said": 0}
        gathered = plane.gather_to_main(f"rank {world.rank}")
        assert gathered == ([f"rank {rank}" for rank in range(size)] if world.rank == 0 else None)
        assert plane.join([world.rank], lambda a, b: (a + b)[:3])[0] == 0
        assert world.sum_tensor(torch.arange(3)).tolist() == [0, size, 2 * size]
        return early.result()

    assert in_threads(size, talk) == [[size * (size - 1) / 2, size / 2]] * size


def test_sums_are_the_same_to_the_last_bit_whatever_comes_first():
    values = np.random.default_rng(0).normal(size=40) * 10.0 ** np.arange(-20, 20)

    def talk(world):
        time.sleep(float(np.random.default_rng(world.rank).random()) / 50)
        return world.sum([values[world.rank]])[0]

    assert len({value for _ in range(3) for value in in_threads(40, talk)}) == 1


@pytest.mark.parametrize("size", [1, 1024, 16_384])
def test_the_tree_joins_every_rank_with_few_neighbours_and_hops(size):
    seen = []
    for rank in range(size):
        children = children_of(rank, size)
        assert len(children) <= FAN_OUT
        assert all(parent_of(child) == rank for child in children)
        seen += children
    assert sorted(seen) == list(range(1, size))
    hops, rank = 0, size - 1
    while (rank := parent_of(rank) if rank else None) is not None:
        hops += 1
    assert hops <= {1: 0, 1024: 3, 16_384: 4}[size]


def test_a_rank_that_leaves_is_named_by_those_that_wait_for_it():
    def talk(world):
        world.plane.barrier()
        if world.rank == 2:
            return None
        try:
            world.plane.barrier()
        except PeerLost as error:
            return str(error)
        raise AssertionError("nobody missed rank 2")

    words = in_threads(4, talk)
    assert f"rank 2 on node {socket.gethostname()} has left" in words[0]
    assert all("has left" in words[rank] for rank in (1, 3))


def test_a_rank_that_is_late_is_named_after_the_deadline():
    done = threading.Event()

    def talk(world):
        world.plane.barrier()
        world.plane.set_timeout(timedelta(seconds=0.3))
        if world.rank == 1:
            done.wait(20)
            return None
        try:
            world.plane.barrier()
        except PeerLost as error:
            done.set()
            return str(error)
        raise AssertionError("the deadline passed unnoticed")

    assert in_threads(2, talk)[0] == f"rank 1 on node {socket.gethostname()} did not answer in time (sum 2)"


@pytest.mark.parametrize(
    ("local", "words"),
    [
        ("", "rank 1, rank 2 has not come within 0.2 s: 1 of 3 ranks have"),
        ("3", f"rank 1 on node {socket.gethostname()}, rank 2 on node {socket.gethostname()} has not come"),
        ("2", "rank 1 on node number 0 of the job, rank 2 on node number 1 of the job has not come"),
    ],
)
def test_ranks_that_never_came_are_named_with_their_node_and_counted(monkeypatch, local, words):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    with pytest.raises(PeerLost, match=words):
        Plane.connect(0, 3, dist.HashStore(), timedelta(seconds=0.2))


def test_a_parent_that_never_came_is_named_by_those_below_it():
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    dist.PrefixStore("plane", store).set("key", "of rank 0, which came")
    with pytest.raises(PeerLost, match=r"rank 1 has not come within .*: 1 of 18 ranks have"):
        Plane.connect(17, 18, store, timedelta(seconds=0.2))


def test_strangers_that_call_are_passed_over():
    import pickle
    import socket

    store = dist.HashStore()
    result = []
    main = threading.Thread(
        target=lambda: result.append(Plane.connect(0, 2, store, timedelta(seconds=30)).sum([1])), daemon=True
    )
    main.start()
    port = pickle.loads(dist.PrefixStore("plane", store).get("address-0"))[0][1]
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
    assert Plane.connect(1, 2, store, timedelta(seconds=30)).sum([2]) == [3]
    main.join(30)
    assert result == [[3]]
