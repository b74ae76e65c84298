"""A mix of sources: which sample each counter of a run draws, also where the mix was changed in the middle of it.

    counter -> stretch of unchanged shares -> Shares -> (source, how often in this stretch) + how often before it
            -> epoch of the source, place in it -> permutation of that epoch -> sample

A stretch begins where a stage begins, where a source has reached its limit, and where a run went on with another
config. How often each source was drawn before it follows from the stretches before, so a run has no other state than
its counter and, once it went on with another mix, the list of which mix held from which counter on (`History`).
A source is known again by its content, wherever it lies and whatever it is called: no change of mix draws a sample
twice in an epoch of its source, or leaves one out.
"""

import dataclasses
import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.mistakes import Mistake
from data_pipeline.reading.order import Permutations, hash64
from data_pipeline.reading.shares import MOST_PLACES, Shares

_BLOCKS = 2
"""Keeps the order within blocks apart from other numbers that are drawn from the same seed."""


@dataclasses.dataclass(frozen=True)
class MixedSource:
    """One source of a mix."""

    name: str
    """What it is called."""
    content: str
    """Hash of its tokens, by which it is known again."""
    dataset: str
    """That of all tokens of the dataset it is in; the same where it is the whole of it."""
    num_samples: int
    """Samples of one epoch."""
    limit: int | None = None
    """Samples of it that a run draws at most."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What holds from a counter on."""

    first: int
    """Counter of its first sample."""
    weights: tuple[float, ...]
    """Of each source, relative to the others; 0 draws nothing of it."""


@dataclasses.dataclass(frozen=True)
class Mix:
    """What a config asks for, in samples."""

    sources: tuple[MixedSource, ...]
    stages: tuple[Stage, ...]
    """By their first counter; the first of them begins with 0."""


@dataclasses.dataclass(frozen=True)
class Since:
    """From which counter on a mix held."""

    first: int
    mix: Mix


History = tuple[Since, ...]
"""The mixes of a run, the first from counter 0 on."""


def gone_on_with(history: History, mix: Mix, counter: int) -> History:
    """The history of a run that goes on at a counter with `mix`; the same one where that is no change.

    Raises ValueError when samples could not be told apart from those that were drawn before.
    """
    if history and history[-1].mix == mix:
        return history
    before = tuple(entry for entry in history if entry.first < counter)
    for source in mix.sources:
        for old in (old for entry in before for old in entry.mix.sources if old.dataset == source.dataset):
            if (old.content == old.dataset) != (source.content == source.dataset):
                was, is_now = (
                    ("as a whole", "by its sources") if old.content == old.dataset else ("by its sources", "as a whole")
                )
                raise Mistake(
                    f"data.mix: the run has drawn from the dataset of '{source.name}' {was} and cannot go on with it "
                    f"{is_now}, for samples would be cut otherwise; name it as before, or start a new run"
                )
    return (*before, Since(counter if before else 0, mix))


# ---- stretches


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """Counters over which shares do not change."""

    first: int
    shares: Shares
    contents: tuple[str, ...]
    """Of the sources that the shares number."""
    before: Mapping[str, int]
    """How often each source was drawn before, by content."""

    def counts(self, counter: int) -> Counter[str]:
        """How often each source was drawn before a counter, by content."""
        here = zip(self.contents, self.shares.counts(counter - self.first), strict=True)
        return Counter(self.before) + Counter(dict(here))


def _stretches(history: History, seed: int) -> tuple[list[_Stretch], int]:
    """All of them in order, and the counter from which on no source has anything left to draw."""
    found: list[_Stretch] = []
    drawn = Counter[str]()
    ends = [*(entry.first for entry in history[1:]), MOST_PLACES]
    for entry, end in zip(history, ends, strict=True):
        stages = entry.mix.stages
        stops = [*(stage.first for stage in stages[1:]), MOST_PLACES]
        counter = entry.first
        for stage, stop in zip(stages, stops, strict=True):
            while counter < min(stop, end):
                stretch, reached = _stretch(entry.mix.sources, stage, counter, drawn, seed)
                if stretch is None:
                    return found, counter
                found.append(stretch)
                counter = min(stop, end) if reached is None else min(stop, end, reached)
                if counter < MOST_PLACES:
                    drawn = stretch.counts(counter)
    return found, MOST_PLACES


def _stretch(
    sources: Sequence[MixedSource], stage: Stage, first: int, drawn: Mapping[str, int], seed: int
) -> tuple[_Stretch | None, int | None]:
    """The stretch that begins at a counter, None where nothing is left; and where a source reaches its limit."""
    left = [None if source.limit is None else source.limit - drawn.get(source.content, 0) for source in sources]
    some_left = [most is None or most > 0 for most in left]
    there = [number for number, weight in enumerate(stage.weights) if weight and some_left[number]]
    if not there:
        return None, None
    shares = Shares([stage.weights[number] for number in there], hash64(seed, _BLOCKS, first))
    place = shares.first_with([left[number] for number in there])
    stretch = _Stretch(first, shares, tuple(sources[number].content for number in there), dict(drawn))
    return stretch, None if place is None else first + place


# ---- drawing


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Where the samples of a source are among those of the dataset that is read."""

    content: str
    """Hash of its tokens."""
    first_sample: int
    """Number of its first sample."""
    num_samples: int
    """Samples of one epoch."""
    seed: int
    """Decides the order of its epochs."""


class MixedOrder:
    """Which sample each value of the global counter draws; every epoch of every source has an order of its own."""

    def __init__(self, history: History, sources: Sequence[Drawn], seed: int):
        self.history = history
        self._sources = sources
        self._sizes = np.array([source.num_samples for source in sources], np.int64)
        self._first_samples = np.array([source.first_sample for source in sources], np.int64)
        self._stretches, self.end = _stretches(history, seed)
        """`end` is the first counter that draws nothing."""
        self._firsts = [stretch.first for stretch in self._stretches]
        self._places = {source.content: number for number, source in enumerate(sources)}
        self._known: tuple[bytes, Permutations] | None = None

    def __call__(self, counters: np.ndarray) -> np.ndarray:
        """Samples drawn by counters >= 0: int64 [B] to int64 [B]."""
        sources, numbers = self.draw(counters)
        epochs, places = np.divmod(numbers, self._sizes[sources])
        orders, which = np.unique(epochs * len(self._sources) + sources, return_inverse=True)
        return self._permutations(orders)(which, places) + self._first_samples[sources]

    def passes(self, counters: np.ndarray) -> np.ndarray:
        """How often all samples of the source that each counter draws from were drawn before, int64 [B]."""
        sources, numbers = self.draw(counters)
        return numbers // self._sizes[sources]

    def draw(self, counters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source that each counter draws from, int64 [B], and how often it was drawn before, int64 [B]."""
        if len(counters) and counters.max() >= self.end:
            raise Mistake(f"data.mix: every source has reached its limit after {self.end} samples; raise a limit")
        sources, numbers = np.empty_like(counters), np.empty_like(counters)
        stretches = np.searchsorted(self._firsts, counters, side="right") - 1
        for number in np.unique(stretches).tolist():
            stretch, here = self._stretches[number], stretches == number
            drawn, earlier = stretch.shares.draw(counters[here] - stretch.first)
            places = np.array([self._places.get(content, -1) for content in stretch.contents])
            before = np.array([stretch.before.get(content, 0) for content in stretch.contents])
            sources[here], numbers[here] = places[drawn], earlier + before[drawn]
        assert not len(sources) or sources.min() >= 0, "counters of a mix whose sources are gone"
        return sources, numbers

    def counts(self, counter: int) -> dict[str, int]:
        """How many samples of each source of the present mix are drawn by lower counters, by name."""
        number = bisect_right(self._firsts, counter) - 1
        counts = self._stretches[number].counts(min(counter, self.end))
        return {source.name: counts[source.content] for source in self.history[-1].mix.sources}

    def _permutations(self, orders: np.ndarray) -> Permutations:
        """Those of some sources and epochs; mostly the same as last time."""
        key = orders.tobytes()
        if self._known is None or self._known[0] != key:
            epochs, sources = np.divmod(orders, len(self._sources))
            pairs = [
                (self._sources[source], epoch) for source, epoch in zip(sources.tolist(), epochs.tolist(), strict=True)
            ]
            keys = [hash64(source.seed, epoch) for source, epoch in pairs]
            self._known = key, Permutations([source.num_samples for source, _ in pairs], keys)
        return self._known[1]


# ---- what a checkpoint keeps


def as_json(history: History) -> list[dict[str, Any]]:
    """As lists and plain values."""
    return [dataclasses.asdict(entry) for entry in history]


def from_json(entries: Sequence[Mapping[str, Any]]) -> History:
    """What `as_json` made. KeyError, TypeError or ValueError where it is something else."""
    history = tuple(Since(int(entry["first"]), _mix(entry["mix"])) for entry in entries)
    firsts = [entry.first for entry in history]
    if firsts and (firsts[0] != 0 or any(a >= b for a, b in itertools.pairwise(firsts))):
        raise ValueError(f"mixes that begin at {firsts}")
    return history


def _mix(facts: Mapping[str, Any]) -> Mix:
    sources = tuple(MixedSource(**source) for source in facts["sources"])
    stages = tuple(Stage(int(stage["first"]), tuple(map(float, stage["weights"]))) for stage in facts["stages"])
    if not sources or not stages or any(len(stage.weights) != len(sources) for stage in stages):
        raise ValueError("a mix without sources, stages or weights")
    return Mix(sources, stages)
