"""Which of several sources each place of a run goes to, and how often it was drawn before: evaluated, never stored.

    place -> block of 8 places -> each place down a tree of sources -> shuffled within the block -> source, its number

A node of the tree splits what comes to it in two: of the first i, round(share x i) go left. Such a split misses its
share by half a place at most and never takes a place back, whatever the shares, and the count on either side is known
without those before it. Going down Huffman's tree of the weights (Proceedings of the IRE 1952), where heavy sources lie
high, a source misses its share of any number of places by less than two. Shuffling within blocks keeps sources from
falling in step with ranks or micro-batches, and costs two places more at either end of a window: so in every window of
10,000 places the shares are right to a thousandth.
"""

import heapq
import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from data_pipeline.reading.order import mix64

BLOCK = 8
"""Places that are shuffled among each other; with 16 a window could miss a share by more than a thousandth."""
MOST_PLACES = 1 << 42
"""Places that can be counted: four trillion samples."""

_SHARE_BITS = np.uint64(32)
_HALF = np.uint64(1 << 31)
_LOW_BITS = np.uint64(20)
_LOW = np.uint64((1 << 20) - 1)


class Shares:
    """Sources 0 ... S - 1 by their weights, which are positive, over places 0, 1, 2 ...

    `key` decides the order within blocks.
    """

    def __init__(self, weights: Sequence[float], key: int):
        assert weights and min(weights) > 0, weights
        self.num_sources = len(weights)
        self._key = np.uint64(key)
        self._left, self._right, shares = _tree(weights)
        self._shares = np.array(shares, np.uint64)
        self._children = np.array([self._right, self._left])
        self._root = len(shares) - 1
        self._ways = _ways_down(self._left, self._right, self.num_sources)
        self._depth = max(map(len, self._ways))

    def draw(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source of each place, int64 [N], and how often it was drawn at lower places, int64 [N]; places int64 [N]."""
        blocks, rows = np.unique(places // BLOCK, return_inverse=True)
        sources, numbers = self._of_blocks(blocks)
        columns = places % BLOCK
        return sources[rows, columns], numbers[rows, columns]

    def counts(self, place: int) -> list[int]:
        """How often each source is drawn at lower places."""
        start = place - place % BLOCK
        counts = [self._count(source, start) for source in range(self.num_sources)]
        if place > start:
            sources, _ = self._of_blocks(np.array([start // BLOCK]))
            for source in sources[0, : place - start].tolist():
                counts[source] += 1
        return counts

    def first_with(self, limits: Sequence[int | None]) -> int | None:
        """The lowest place at which some source was drawn as often as its limit, which is positive; None if none is."""
        block = min((self._last_block_below(source, most) for source, most in enumerate(limits) if most), default=None)
        if block is None:
            return None
        sources, numbers = self._of_blocks(np.array([block]))
        drawn = zip(sources[0].tolist(), numbers[0].tolist(), strict=True)
        reached = (column for column, (source, number) in enumerate(drawn) if number + 1 == limits[source])
        column = next(reached, None)  # none where no place that can be counted is enough
        return None if column is None else block * BLOCK + column + 1

    def _last_block_below(self, source: int, limit: int) -> int:
        """The block before which the source was drawn less often than its limit, and after which it was not."""
        low, high = 0, MOST_PLACES // BLOCK
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._count(source, middle * BLOCK) < limit else (low, middle)
        return low

    def _count(self, source: int, count: int) -> int:
        """How many of the first `count` places, whole blocks, go to a source."""
        for node, is_left in self._ways[source]:
            left = (int(self._shares[node]) * count + int(_HALF)) >> int(_SHARE_BITS)
            count = left if is_left else count - left
        return count

    def _of_blocks(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `draw` says of all places of blocks, int64 [B]: int64 [B, BLOCK] each."""
        places = (blocks[:, None] * BLOCK + np.arange(BLOCK)).astype(np.uint64)
        sources, numbers = self._down(places)
        noise = mix64(mix64(places ^ self._key) + self._key)
        shuffled = np.take_along_axis(sources, np.argsort(noise, axis=1, kind="stable"), axis=1)
        # the first place that a source has after shuffling gets its lowest number
        lowest, first = (np.argsort(each, axis=1, kind="stable") for each in (sources, shuffled))
        np.put_along_axis(numbers, first, np.take_along_axis(numbers, lowest, axis=1), axis=1)
        return shuffled, numbers

    def _down(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where places end up in the tree, and how many ended there before: uint64 of any shape to int64 of that."""
        nodes = np.full(counts.shape, self._root)
        for _ in range(self._depth):
            shares = self._shares[nodes]
            left = _rounded(shares, counts)
            is_left = _rounded(shares, counts + np.uint64(1)) > left
            counts = np.where(is_left, left, counts - left)
            nodes = self._children[is_left.astype(np.int8), nodes]
        return nodes, counts.astype(np.int64)


def _rounded(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The product, rounded; uint64, shares in 2^-32, counts at most 2^42: exact, though the product has 74 bits."""
    high = shares * (counts >> _LOW_BITS)
    low = shares * (counts & _LOW) + _HALF
    return (high + (low >> _LOW_BITS)) >> (_SHARE_BITS - _LOW_BITS)


def _tree(weights: Sequence[float]) -> tuple[list[int], list[int], list[int]]:
    """Huffman's tree: left child, right child, and share of what goes left in 2^-32, by node; the last is the root.

    The first nodes are the sources; everything that comes to one goes left, which is itself.
    """
    left, right = list(range(len(weights))), list(range(len(weights)))
    shares = [1 << 32] * len(weights)
    heap = [(Fraction(weight), node) for node, weight in enumerate(weights)]
    heapq.heapify(heap)
    for node in itertools.count(len(weights)):
        if len(heap) == 1:
            return left, right, shares
        (light, a), (heavy, b) = heapq.heappop(heap), heapq.heappop(heap)
        left.append(a)
        right.append(b)
        share = round(light / (light + heavy) * (1 << 32))
        shares.append(max(share, 1))
        heapq.heappush(heap, (light + heavy, node))
    raise AssertionError


def _ways_down(left: list[int], right: list[int], num_sources: int) -> list[list[tuple[int, bool]]]:
    """For each source the nodes from the root to it, and whether it goes left there."""
    ways: list[list[tuple[int, bool]]] = [[] for _ in left]
    for node in reversed(range(num_sources, len(left))):
        ways[left[node]] = [*ways[node], (node, True)]
        ways[right[node]] = [*ways[node], (node, False)]
    return ways[:num_sources]
