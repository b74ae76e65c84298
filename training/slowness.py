"""Which ranks are slow by themselves: their own seconds, not those they waited for others, held against the median.

    own seconds of each rank -> Slowness of one -> joined two at a time up the tree -> the slowest and the median

What is joined has a constant size: the slowest ranks by name, and a histogram in steps of 4 % for the median.
"""

import dataclasses
import math
from collections import Counter

SHOWN = 4
"""Slowest ranks that are named."""
FINENESS = 16
"""Bars of the histogram for each doubling."""
LEAST, MOST = 1e-6, 1e6
"""Seconds that it tells apart; 40 doublings of 16 bars are the most it can hold."""


@dataclasses.dataclass(frozen=True)
class Slowness:
    """Own seconds of some ranks."""

    slowest: list[tuple[float, int, str]]
    """Seconds, rank and node of the slowest, the slowest first."""
    bars: dict[int, int]
    """How many ranks took how long, by the logarithm of their seconds."""

    @classmethod
    def of(cls, seconds: float, rank: int, node: str) -> "Slowness":
        """Of one rank."""
        return cls([(seconds, rank, node)], {round(FINENESS * math.log2(min(max(seconds, LEAST), MOST))): 1})

    def joined(self, other: "Slowness") -> "Slowness":
        """Of the ranks of both."""
        slowest = sorted([*self.slowest, *other.slowest], key=lambda each: (-each[0], each[1]))[:SHOWN]
        return Slowness(slowest, dict(Counter(self.bars) + Counter(other.bars)))

    @property
    def median(self) -> float:
        """Seconds of the middle rank, the lower of two, within 2 %."""
        middle, before = (sum(self.bars.values()) + 1) // 2, 0
        for bar in sorted(self.bars):
            before += self.bars[bar]
            if before >= middle:
                return 2 ** (bar / FINENESS)
        raise AssertionError("there is no rank")

    @property
    def ratios(self) -> list[tuple[float, int, str]]:
        """How many times the median the slowest took, with rank and node."""
        return [(seconds / self.median, rank, node) for seconds, rank, node in self.slowest]

    def figures(self) -> dict[str, float | int | str]:
        """The slowest for a line of metrics."""
        ratio, rank, node = self.ratios[0]
        return {"slowest_ratio": ratio, "slowest_rank": rank, "slowest_node": node}


class Persistence:
    """Tells ranks that stay slow from those that were once."""

    RATIO, TIMES = 1.3, 10
    """How many times the median a slow rank takes, and in how many lines of metrics in a row."""

    def __init__(self) -> None:
        self._times: Counter[int] = Counter()

    def news(self, slowness: Slowness) -> list[tuple[float, int, str]]:
        """Ranks that have been slow in so many lines just now, each told once until it was not slow for a line."""
        slow = {rank: (ratio, rank, node) for ratio, rank, node in slowness.ratios if ratio >= self.RATIO}
        self._times = Counter({rank: self._times[rank] + 1 for rank in slow})
        return [slow[rank] for rank, times in self._times.items() if times == self.TIMES]
