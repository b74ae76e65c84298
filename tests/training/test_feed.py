"""Batches that come counted, and stops that all ranks learn of at the same step."""

import pytest
import torch

from tests.training.planes import in_threads
from tests.training.runs import tiny_config
from tests.training.step_ranks import batches_of
from training.distributed import World
from training.feed import Feeder
from training.step import Patterns, count


def fed(dataset, world: World, num_steps: int, stop) -> Feeder:
    return Feeder(batches_of(tiny_config(dataset), world.rank, world.size), num_steps, world, stop)


def never() -> bool:
    return False


def test_it_gives_what_the_loader_gives_with_the_counts_of_all_ranks(dataset):
    def steps(world: World) -> list:
        feeder = fed(dataset, world, 3, never)
        taken = [feeder.take() for _ in range(3)]
        feeder.close()
        with batches_of(tiny_config(dataset), world.rank, world.size) as loader:
            for data in taken:
                for batch, expected in zip(data.batches, next(loader), strict=True):
                    assert torch.equal(batch.tokens, expected.tokens)
        return [(data.counts, sum(batch.num_targets for batch in data.batches)) for data in taken]

    ranks = in_threads(2, steps)
    for (counts, one), (same, other) in zip(*ranks, strict=True):
        assert counts == same
        assert counts.targets == one + other


def test_counts_made_ahead_are_those_made_at_once(dataset):
    feeder = fed(dataset, World.alone(), 1, never)
    data = feeder.take()
    feeder.close()
    assert data.counts == count(data.batches, [Patterns.of(batch) for batch in data.batches], World.alone())


def test_nothing_is_taken_from_the_loader_beyond_the_last_step():
    taken = []

    def loader():
        for number in range(100):
            taken.append(number)
            yield []

    feeder = Feeder(loader(), 3, World.alone(), never)
    while feeder.left:
        feeder.take()
    feeder.close()
    assert taken == [0, 1, 2]
    assert not feeder.stopping


@pytest.mark.parametrize("asked_in", [1, 2, 3])
def test_a_stop_of_one_rank_ends_all_of_them_one_step_later(dataset, asked_in):
    def last_step(world: World) -> int:
        asked = []
        feeder = fed(dataset, world, 10, lambda: bool(asked))
        step = 0
        while feeder.left and not feeder.stopping:
            feeder.take()
            step += 1
            if step == asked_in and world.rank == 1:
                asked.append("SIGTERM")
        feeder.close()
        return step

    assert in_threads(2, last_step) == [asked_in + 1] * 2


def test_a_stop_that_came_before_the_first_step_leaves_none(dataset):
    def stops(world: World) -> bool:
        feeder = fed(dataset, world, 10, lambda: world.rank == 1)
        feeder.close()
        return feeder.stopping

    assert in_threads(2, stops) == [True, True]


@pytest.mark.parametrize("asked", range(4))
def test_a_stop_is_heard_from_every_rank_though_ranks_alike_in_their_samples_count_once(dataset, asked):
    def counts(world: World) -> tuple[bool, int, int]:
        loader = batches_of(tiny_config(dataset), world.mesh.data.rank, world.mesh.data.size)
        feeder = Feeder(loader, 10, world, lambda: world.rank == asked)
        data = feeder.take()
        stopping = feeder.stopping
        feeder.close()
        loader.close()
        return stopping, data.counts.targets, sum(batch.num_targets for batch in data.batches)

    ranks = in_threads(4, counts, tensor=2)
    assert all(stopping for stopping, _, _ in ranks)
    assert {targets for _, targets, _ in ranks} == {ranks[0][2] + ranks[2][2]}


def test_what_the_loader_raises_is_raised_when_the_batch_is_needed():
    def loader():
        yield []
        raise OSError("the disk is gone")

    feeder = Feeder(loader(), 5, World.alone(), never)
    with pytest.raises(OSError, match="the disk is gone"):
        feeder.take()
    feeder.close()
