"""Places of a run among sources: shares that hold in every window, counts without counting."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.reading.shares import BLOCK, MOST_PLACES, Shares

WINDOW = 10_000
WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60)


def worst_window(weights, places, window=WINDOW):
    """By how many places a source misses its share in the window where that is most."""
    sources, _ = Shares(weights, key=5).draw(np.arange(places))
    wanted = np.array(weights) / np.sum(weights) * window
    before = [np.concatenate(([0], np.cumsum(sources == source))) for source in range(len(weights))]
    return max(
        abs(counts[window:] - counts[:-window] - share).max() for counts, share in zip(before, wanted, strict=True)
    )


def test_shares_of_a_million_places_are_right_to_a_thousandth_in_every_window():
    weights = np.random.default_rng(3).lognormal(0, 2, 50).tolist()
    assert worst_window(weights, 10**6) <= WINDOW / 1000


@settings(deadline=None, max_examples=30)
@given(weights=WEIGHTS)
def test_shares_hold_in_every_window_whatever_the_weights(weights):
    assert worst_window(weights, 30_000) <= WINDOW / 1000


@settings(deadline=None, max_examples=50)
@given(weights=WEIGHTS, key=st.integers(0, 2**64 - 1), stop=st.integers(0, 3000))
def test_each_source_is_numbered_in_the_order_of_places(weights, key, stop):
    shares = Shares(weights, key)
    sources, numbers = shares.draw(np.arange(stop))
    for source in range(len(weights)):
        assert numbers[sources == source].tolist() == list(range((sources == source).sum()))
    assert shares.counts(stop) == np.bincount(sources, minlength=len(weights)).tolist()


def test_places_may_be_asked_for_in_any_order():
    shares, order = Shares([5, 3, 1, 1], 1), np.random.default_rng(0).permutation(1000)
    sources, numbers = shares.draw(np.arange(1000))
    some_sources, some_numbers = shares.draw(order)
    assert (some_sources == sources[order]).all() and (some_numbers == numbers[order]).all()


def test_shares_are_exact_after_a_trillion_places():
    weights = [0.3, 0.2, 0.1, 0.4]
    counts = Shares(weights, 0).counts(10**12)
    assert sum(counts) == 10**12
    assert np.allclose(np.array(counts) / 10**12, weights, atol=1e-9)


def test_a_number_far_out_is_that_of_the_count_before_it():
    shares, place = Shares([7, 2, 1e-3], 9), MOST_PLACES - 3
    (source,), (number,) = shares.draw(np.array([place]))
    assert number == shares.counts(place)[source]


@settings(deadline=None, max_examples=50)
@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60), limit=st.integers(1, 500), data=st.data())
def test_a_limit_is_reached_at_the_first_place_with_so_many(weights, limit, data):
    shares = Shares(weights, 4)
    limits = [None] * len(weights)
    limited = data.draw(st.integers(0, len(weights) - 1))
    limits[limited] = limit
    place = shares.first_with(limits)
    assert place is not None
    assert shares.counts(place)[limited] == limit and shares.counts(place - 1)[limited] == limit - 1


def test_no_limit_is_never_reached_nor_one_beyond_all_places():
    assert Shares([1, 2], 0).first_with([None, None]) is None
    assert Shares([1e12, 1], 0).first_with([None, 5000]) is None


def test_the_order_within_blocks_depends_on_the_key_and_keeps_their_counts():
    a, b = (Shares([1, 1], key).draw(np.arange(80 * BLOCK))[0].reshape(80, BLOCK) for key in (1, 2))
    assert (a != b).any() and (a.sum(1) == b.sum(1)).all()


def test_ranks_that_take_every_other_place_see_all_sources():
    sources, _ = Shares([1, 1], 3).draw(np.arange(8000))
    assert 0.4 < sources[::2].mean() < 0.6
