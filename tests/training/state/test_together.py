"""Errors of one rank are errors of all, and no rank is left waiting."""

import pytest

from common.mistakes import Mistake
from tests.training.state.ranks import on_ranks
from training.state.together import everywhere, on_main


class Odd(Exception):
    """Cannot be made anew from what pickle keeps of it."""

    def __init__(self, what, why):
        super().__init__(f"{what} because {why}")


@pytest.mark.parametrize("error", [Mistake("a mistake"), OSError(116, "Stale file handle"), Odd("broken", "odd")])
@pytest.mark.parametrize("rank", [0, 2])
def test_an_error_of_any_rank_is_raised_on_every_rank(error, rank):
    def act(world):
        def fail():
            if world.rank == rank:
                raise error
            return world.rank

        return everywhere(world, fail)

    found = on_ranks(3, act)
    assert all(str(error) in str(each) for each in found)
    assert all(type(each) is (RuntimeError if isinstance(error, Odd) else type(error)) for each in found)


def test_an_error_of_the_main_rank_is_raised_on_every_rank_and_its_answer_reaches_all():
    def fail():
        raise Mistake("only rank 0 looked")

    assert on_ranks(3, lambda world: on_main(world, lambda: world.rank)) == [0, 0, 0]
    assert [str(each) for each in on_ranks(3, lambda world: on_main(world, fail))] == ["only rank 0 looked"] * 3


def test_ranks_that_go_on_after_an_error_are_still_at_the_same_call():
    def act(world):
        try:
            everywhere(world, lambda: 1 / world.rank)
        except ZeroDivisionError:
            return world.max([world.rank])[0]

    assert on_ranks(3, act) == [2, 2, 2]
