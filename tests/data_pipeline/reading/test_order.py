"""The order is a permutation for every size and key, the same however it is asked for, and looks random."""

from math import isqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.reading.order import NUM_ROUNDS, Permutation, SampleOrder, hash64, mix64

KEYS = st.integers(0, 2**64 - 1)


def all_of(n, key):
    return Permutation(n, key)(np.arange(n))


@pytest.mark.parametrize("sizes", [range(1, 400), [1023, 1024, 1025, 4095, 4096, 4097, 99_991, 100_000]])
def test_every_index_comes_exactly_once(sizes):
    for n in sizes:
        assert np.array_equal(np.sort(all_of(n, n)), np.arange(n)), n


@given(st.integers(1, 2000), KEYS)
def test_every_index_comes_exactly_once_under_any_key(n, key):
    assert np.array_equal(np.sort(all_of(n, key)), np.arange(n))


@given(st.integers(1, 2**62 - 1), KEYS, st.data())
def test_huge_ranges_stay_in_range_and_do_not_collide(n, key, data):
    indices = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=50))))
    images = Permutation(n, key)(indices)
    assert images.dtype == np.int64
    assert (images >= 0).all() and (images < n).all()
    assert len(set(images.tolist())) == len(indices)


@given(st.integers(1, 10**12), KEYS, st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_many_at_once_are_as_one_by_one(n, key, wanted):
    permutation = Permutation(n, key)
    indices = np.array(wanted) % n
    one_by_one = [int(permutation(np.array([index]))[0]) for index in indices]
    assert permutation(indices).tolist() == one_by_one
    assert permutation(indices.reshape(1, -1, 1)).ravel().tolist() == one_by_one


def test_other_keys_give_other_permutations():
    seen = {tuple(all_of(100, key)) for key in [0, 1, 2, 3, 2**32, 2**63, 2**64 - 1]}
    assert len(seen) == 7


def test_it_does_not_change_between_versions():
    """Runs that were started with an older version must go on with the same samples."""
    assert all_of(10, 42).tolist() == [8, 4, 5, 2, 7, 9, 1, 3, 6, 0]
    assert SampleOrder(1000, 1234)(np.array([0, 1, 999, 1000, 10**9])).tolist() == [41, 586, 319, 64, 426]


def mixed_slowly(value):
    """SplitMix64's finaliser on one Python integer."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def permuted_slowly(n, key, index):
    """One image of the permutation, in Python integers."""
    rows = isqrt(n - 1) + 1
    columns = -(-n // rows)
    keys = [mixed_slowly((key + number * 0x9E3779B97F4A7C15) % 2**64) for number in range(1, NUM_ROUNDS + 1)]
    while True:
        row, column = index % rows, index // rows
        for number, round_key in enumerate(keys):
            if number % 2:
                column = (column + ((mixed_slowly(row ^ round_key) >> 32) * columns >> 32)) % columns
            else:
                row = (row + ((mixed_slowly(column ^ round_key) >> 32) * rows >> 32)) % rows
        index = column * rows + row
        if index < n:
            return index


@given(st.integers(1, 2**62 - 1), KEYS, st.data())
def test_it_is_the_cipher_it_says_it_is(n, key, data):
    indices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    assert Permutation(n, key)(np.array(indices)).tolist() == [permuted_slowly(n, key, i) for i in indices]


def test_each_index_goes_everywhere_equally_often():
    n, num_keys = 16, 4000
    counts = np.zeros((n, n))
    for key in range(num_keys):
        counts[np.arange(n), all_of(n, hash64(key))] += 1
    expected = num_keys / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # (n - 1)^2 degrees of freedom: mean 225, standard deviation 21
    assert 225 - 5 * 21 < chi_square < 225 + 5 * 21


def test_neighbours_do_not_stay_neighbours():
    n = 100_000
    images = all_of(n, 5)
    steps = np.diff(images)
    assert (np.abs(steps) == 1).sum() < 20  # two are expected
    assert abs(np.corrcoef(np.arange(n), images)[0, 1]) < 0.02
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.02
    # every stretch of the order sees all of the data alike
    spread = np.bincount(images[: n // 10] * 10 // n, minlength=10)
    assert np.abs(spread - n / 100).max() < 6 * np.sqrt(n / 100)


@pytest.mark.parametrize("n", [0, -1, 2**62])
def test_sizes_that_cannot_be_permuted_are_refused(n):
    with pytest.raises(ValueError, match="can be permuted"):
        Permutation(n, 0)


@given(st.integers(1, 50), st.integers(0, 2**63 - 1))
def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own(n, seed):
    epochs = SampleOrder(n, seed)(np.arange(5 * n)).reshape(5, n)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (5, 1)))
    if n > 12:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5


@given(st.integers(1, 1000), st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(1, 300))
def test_the_order_can_be_entered_anywhere(n, seed, start, count):
    counters = np.arange(start, start + count)
    order = SampleOrder(n, seed)
    whole = order(counters)
    assert whole.tolist() == SampleOrder(n, seed)(counters[::-1])[::-1].tolist()
    assert whole[count // 2 :].tolist() == order(counters[count // 2 :]).tolist()


def test_seeds_differ():
    counters = np.arange(200)
    orders = {tuple(SampleOrder(200, seed)(counters)) for seed in range(20)}
    assert len(orders) == 20


def test_mixing_is_a_bijection_that_leaves_its_input_alone():
    values = np.arange(100_000, dtype=np.uint64)
    mixed = mix64(values)
    assert len(np.unique(mixed)) == len(values)
    assert np.array_equal(values, np.arange(100_000, dtype=np.uint64))
    bits = (mixed[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.01


def test_the_hash_depends_on_every_part_and_their_order():
    values = [hash64(), hash64(0), hash64(1), hash64(0, 1), hash64(1, 0), hash64(0, 0), hash64(-1)]
    assert len(set(values)) == len(values)
    assert hash64(2**64 + 3) == hash64(3)
