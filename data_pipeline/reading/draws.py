"""Randomness of objectives: pure functions of 64-bit keys, one key per piece of a document.

    (seed, counter of the sample, number of the piece in it) -> key -> numbers, subsets, partitions

Nothing here has a state, so a sample looks the same whatever batch, rank or restart it is read in. Rows are drawn
together, many at a time, without a loop and without sorting.
"""

import numpy as np

from data_pipeline.reading.order import hash64, mix64

_STREAM, _PLACES = 1, 2
"""Keep these numbers apart from each other and from others that are drawn from the same seed."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


def piece_keys(seed: int, counters: np.ndarray, num_pieces: np.ndarray) -> np.ndarray:
    """One key per piece of some samples: counters int64 [B] and pieces of each, int64 [B], to uint64 [sum]."""
    of_samples = mix64(counters.astype(np.uint64) ^ np.uint64(hash64(seed, _STREAM)))
    return mix64(np.repeat(of_samples, num_pieces) + places(num_pieces).astype(np.uint64))


def place_keys(seed: int, passes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """One key per piece, by the pass over the split and the piece's first token in it: int64 [N] each to uint64 [N]."""
    of_passes = mix64(passes.astype(np.uint64) ^ np.uint64(hash64(seed, _PLACES)))
    return mix64(of_passes + starts.astype(np.uint64))


def fork(keys: np.ndarray, purpose: int) -> np.ndarray:
    """Other keys for another purpose, independent of the first: uint64 [N] to uint64 [N]."""
    return mix64(keys ^ np.uint64(hash64(purpose)))


def bits(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The first `counts[j]` random numbers of key j, uint64 [sum of counts]: SplitMix64 started at the key."""
    return mix64(np.repeat(keys, counts) + places(counts).astype(np.uint64) * _GOLDEN)


def below(noise: np.ndarray, limits: np.ndarray | int) -> np.ndarray:
    """Random integers in [0, limits), limits < 2^32, from random bits: int64 in the shape of `noise`."""
    return ((noise >> _HALF) * np.asarray(limits, dtype=np.uint64) >> _HALF).astype(np.int64)


def fractions(noise: np.ndarray) -> np.ndarray:
    """Random numbers in [0, 1) from random bits: float64 in the shape of `noise`."""
    return (noise >> np.uint64(11)) * 2.0**-53


def places(lengths: np.ndarray) -> np.ndarray:
    """Place of each token in its row, counted from 0: int64 [sum of lengths]."""
    return ranges(np.zeros_like(lengths), lengths)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers of [starts[j], starts[j] + lengths[j]), row after row: int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def row_sums(flags: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How many flags of each row are set: bool [sum of lengths] to int64 [N]."""
    counts = np.concatenate(([0], np.cumsum(flags)))
    ends = np.cumsum(lengths)
    return counts[ends] - counts[ends - lengths]


def before(lengths: np.ndarray) -> np.ndarray:
    """Where each row starts when all are put end to end: int64 [N]."""
    return np.cumsum(lengths) - lengths


def choose(keys: np.ndarray, population: np.ndarray, count: np.ndarray, lead: int = 0) -> np.ndarray:
    """A random subset of each row, `count` out of `population` places; all subsets are equally likely.

    uint64, int64 and int64 [N] to bool [sum of (lead + population)]: True at `lead` places put before each row and at
    those chosen. Draws places until enough differ; where most are wanted, it draws those that are not.
    """
    row_starts = before(population + lead)
    inverted = count > population // 2
    if inverted.any():
        chosen = np.repeat(inverted, population + lead)
        count = np.where(inverted, population - count, count)
    else:
        chosen = np.zeros(int(population.sum()) + lead * len(population), bool)
    _toggle(chosen, row_starts + lead, keys, population, count, 1)
    if lead:
        chosen[row_starts] = True
    return chosen


def _toggle(chosen, starts, keys, population, count, generosity: int) -> None:
    """Toggles `count` different places of each row; rows that draw too few of them draw again, more.

    Which of several equal draws stands for them does not depend on the value drawn, so no value is favoured.
    """
    num_draws = _enough_draws(population, count) * generosity
    row_ends = np.cumsum(num_draws)
    if not len(row_ends) or not row_ends[-1]:
        return
    drawn = below(bits(keys, num_draws), np.repeat(population, num_draws)) + np.repeat(starts, num_draws)
    numbers = np.arange(len(drawn))
    holder = np.empty(len(chosen), np.int64)
    holder[drawn] = numbers
    is_new = holder[drawn] == numbers
    num_new = np.concatenate(([0], np.cumsum(is_new)))
    first, last = num_new[row_ends - num_draws], num_new[row_ends]
    enough = last - first >= count
    rank_limit = np.where(enough, first + count, first)
    kept = drawn[is_new & (num_new[1:] <= np.repeat(rank_limit, num_draws))]
    chosen[kept] = ~chosen[kept]
    if not enough.all():
        few = ~enough
        _toggle(chosen, starts[few], keys[few], population[few], count[few], 2 * generosity)


def _enough_draws(population: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Draws that hold `count` different values with near certainty: mean of the coupon collector and 5 deviations."""
    left = 1.0 - count / np.maximum(population, 1)
    mean = -population * np.log(left)
    variance = np.maximum(population * (1.0 / left - 1.0 + np.log(left)), 0.0)
    return np.where(count > 0, np.ceil(mean + 5.0 * np.sqrt(variance)).astype(np.int64) + 2, 0)


def segments(keys: np.ndarray, num_items: np.ndarray, num_segments: np.ndarray) -> np.ndarray:
    """Random partition of each row's items into segments of at least one; all partitions are equally likely.

    uint64, int64 and int64 [N], 1 <= num_segments <= num_items, to the lengths of the segments, int64 [sum].
    """
    begins = choose(keys, num_items - 1, num_segments - 1, lead=1)
    return np.diff(np.flatnonzero(begins), append=len(begins))


def shuffled(keys: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Order of each row's items at random: indices into the rows put end to end, int64 [sum of lengths]."""
    return np.lexsort((bits(keys, lengths), np.repeat(np.arange(len(lengths)), lengths)))
