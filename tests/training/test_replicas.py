"""Who differs from most, found by messages of a fixed size."""

import collections
import functools
import operator

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.planes import in_threads
from training.replicas import SHOWN, Deviants, Vote, deviants, digest_of


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.randoms())
def test_a_majority_wins_the_vote_however_it_is_counted(digests, random):
    votes = [Vote(digest) for digest in digests]
    while len(votes) > 1:  # any tree
        place = random.randrange(len(votes) - 1)
        votes[place : place + 2] = [votes[place] + votes[place + 1]]
    (digest, count), *_ = collections.Counter(digests).most_common(1)
    assert votes[0].unanimous == (len(set(digests)) == 1)
    if count * 2 > len(digests):
        assert votes[0].digest == digest


def found(num_ranks: int, others: dict[int, int], **sizes: int) -> Deviants | None:
    """What all ranks find when some hold another digest."""
    seen = in_threads(num_ranks, lambda world: deviants(others.get(world.rank, 7), world), **sizes)
    assert len(set(seen)) == 1
    return seen[0]


def test_ranks_that_hold_something_else_are_named_and_those_that_are_right_are_not():
    assert found(7, {}) is None
    one = found(7, {4: 8})
    assert one is not None and one.certain
    assert [rank for rank, _ in one.named] == [4] and str(one).startswith("4 on ")
    many = found(25, {rank: rank + 100 for rank in range(12)})
    assert many is not None and (many.count, len(many.named), many.certain) == (12, SHOWN, True)
    assert str(many).endswith(f" and {12 - SHOWN} more")


def test_without_a_majority_all_are_named():
    two = found(2, {1: 8})
    assert two is not None and not two.certain
    assert [rank for rank, _ in two.named] == [0, 1]


def test_only_ranks_with_the_same_part_of_the_model_are_compared():
    parts = {rank: rank % 2 for rank in range(8)}
    assert found(8, parts, tensor=2) is None
    one = found(8, parts | {5: 9}, tensor=2)
    assert one is not None and [rank for rank, _ in one.named] == [5] and one.certain


def test_one_bit_makes_another_digest():
    weights = [torch.randn(5, 3), torch.randn(4).bfloat16()]
    before = digest_of(weights)
    assert before == digest_of([weight.clone() for weight in weights])
    weights[1].view(torch.int16)[2] ^= 1
    assert digest_of(weights) != before


def test_only_a_node_that_is_known_to_be_at_fault_is_blamed():
    assert Deviants(1, ((3, "node2"),), True).blamed == ["node2"]
    assert Deviants(1, ((3, "node2"),), False).blamed == []


def test_deviants_add_up_in_any_order():
    parts = [Deviants(1, ((rank, f"node{rank // 4}"),), True) for rank in (9, 2, 5)]
    assert functools.reduce(operator.add, parts) == functools.reduce(operator.add, reversed(parts))
    assert functools.reduce(operator.add, parts).nodes == ["node0", "node1", "node2"]
