"""Slow ranks are found by a value of constant size."""

import functools
import pickle
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.slowness import SHOWN, Persistence, Slowness


def of(seconds) -> Slowness:
    """Joined over ranks of so many seconds each."""
    each = [Slowness.of(length, rank, f"node-{rank // 8}") for rank, length in enumerate(seconds)]
    return functools.reduce(Slowness.joined, each)


@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=50))
def test_the_median_is_right_within_its_bars_and_the_slowest_are_named(seconds):
    found = of(seconds)
    assert found.median == pytest.approx(statistics.median_low(seconds), rel=0.025)
    assert [each[0] for each in found.slowest] == sorted(seconds, reverse=True)[:SHOWN]
    assert all(seconds[rank] == length and node == f"node-{rank // 8}" for length, rank, node in found.slowest)


def test_what_travels_does_not_grow_with_the_ranks():
    few, many = (of([1 + 0.3 * (rank * 7919 % 97) / 97 for rank in range(count)]) for count in (64, 16_384))
    assert len(pickle.dumps(many)) < 1.5 * len(pickle.dumps(few))


def test_a_line_of_metrics_names_the_slowest():
    figures = of([1.0, 1.0, 1.0, 2.0]).figures()
    assert figures == {"slowest_ratio": pytest.approx(2, rel=0.03), "slowest_rank": 3, "slowest_node": "node-0"}


def test_a_rank_that_stays_slow_is_told_of_once_and_one_that_was_slow_once_never():
    persistence, told = Persistence(), []
    for line in range(20):
        seconds = [1.0] * 8
        seconds[5] = 1.5
        seconds[2] = 2.0 if line % 4 == 0 else 1.0
        told += [(line, rank) for _, rank, _ in persistence.news(of(seconds))]
    assert told == [(9, 5)]
    persistence.news(of([1.0] * 8))
    for _ in range(10):
        news = persistence.news(of([1.0] * 7 + [1.5]))
    assert [rank for _, rank, _ in news] == [7]
