"""Random numbers depend on the key alone, and every subset, partition and order is equally likely."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.reading import draws
from data_pipeline.reading.draws import (
    before,
    bits,
    choose,
    fork,
    fractions,
    piece_keys,
    places,
    ranges,
    segments,
    shuffled,
)
from tests.data_pipeline.samples import keys

ROWS = st.lists(st.integers(0, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=20)


def test_keys_belong_to_a_sample_whatever_it_is_read_with():
    counters, num_pieces = np.array([7, 3, 10**12]), np.array([2, 3, 1])
    together = piece_keys(5, counters, num_pieces)
    alone = [piece_keys(5, counters[i : i + 1], num_pieces[i : i + 1]) for i in range(3)]
    assert together.tolist() == np.concatenate(alone).tolist()
    assert together.dtype == np.uint64
    assert len(set(together.tolist())) == 6


def test_keys_differ_between_seeds_and_samples_and_purposes():
    seen = [piece_keys(seed, np.arange(100), np.full(100, 4)) for seed in range(10)]
    assert len(np.unique(seen)) == 4000
    assert len(np.unique([fork(seen[0], purpose) for purpose in range(10)])) == 4000


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9))))
def test_ranges_are_those_of_python(pairs):
    starts, lengths = (np.array(side, np.int64) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    expected = [number for start, length in pairs for number in range(start, start + length)]
    assert ranges(starts, lengths).tolist() == expected
    assert places(lengths).tolist() == [number for _, length in pairs for number in range(length)]


@given(ROWS, st.integers(0, 2**32), st.integers(0, 1))
def test_a_subset_has_the_size_asked_for_and_depends_on_its_own_key(pairs, seed, lead):
    population, count = (np.array(side, np.int64) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    names = keys(len(pairs), seed)
    chosen = choose(names, population, count, lead)
    parts = np.split(chosen, np.cumsum(population + lead))[:-1]
    for part, key, (places_there, wanted) in zip(parts, names, pairs, strict=True):
        assert part[:lead].all() and part[lead:].sum() == wanted
        alone = choose(np.array([key]), np.array([places_there]), np.array([wanted]), lead)
        assert part.tolist() == alone.tolist()


def is_even(counts):
    """Whether counts are as equal as chance makes them: the chi-square statistic within six deviations."""
    counts = np.asarray(counts, float)
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    freedom = len(counts) - 1
    return abs(statistic - freedom) < 6 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(("population", "count"), [(6, 1), (6, 2), (6, 3), (6, 4), (5, 5), (9, 2)])
def test_all_subsets_are_equally_likely(population, count):
    repeats = 20_000
    chosen = choose(keys(repeats), np.full(repeats, population), np.full(repeats, count)).reshape(repeats, -1)
    found, counts = np.unique(chosen @ (1 << np.arange(population)), return_counts=True)
    assert len(found) == len(list(combinations(range(population), count)))
    assert is_even(counts) or len(counts) == 1


def test_rows_that_draw_too_few_places_draw_again(monkeypatch):
    monkeypatch.setattr(draws, "_enough_draws", lambda population, count: (count + 1) // 2)
    repeats = 20_000
    chosen = choose(keys(repeats), np.full(repeats, 6), np.full(repeats, 3)).reshape(repeats, -1)
    found, counts = np.unique(chosen @ (1 << np.arange(6)), return_counts=True)
    assert len(found) == 20 and is_even(counts)


def test_all_partitions_are_equally_likely():
    repeats = 20_000
    lengths = segments(keys(repeats), np.full(repeats, 7), np.full(repeats, 3)).reshape(repeats, 3)
    assert (lengths.sum(axis=1) == 7).all() and lengths.min() == 1
    found, counts = np.unique(lengths @ [100, 10, 1], return_counts=True)
    assert len(found) == 15 and is_even(counts)


def test_all_orders_are_equally_likely():
    repeats = 20_000
    order = shuffled(keys(repeats), np.full(repeats, 4)).reshape(repeats, 4) - before(np.full(repeats, 4))[:, None]
    found, counts = np.unique(order @ [1000, 100, 10, 1], return_counts=True)
    assert len(found) == len(list(permutations(range(4)))) and is_even(counts)


def test_numbers_are_even_and_unrelated_to_their_neighbours():
    numbers = fractions(bits(keys(1000), np.full(1000, 40))).reshape(1000, 40)
    assert is_even(np.histogram(numbers, bins=50, range=(0, 1))[0])
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.03
