"""Where ZeRO keeps each element of the training state in the flat vectors of a rank.

ZeRO flattens the boxes of an optimizer group into vectors, and cuts either each vector (stages 1 and 2, arXiv
1910.02054) or each box (stage 3) into one part per rank; at stage 0 every rank has all, each box a vector of its own.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch

from training.state.boxes import Box

Share = tuple[Box, ...]
"""What a rank holds of a parameter, one box behind another."""
Opened = Callable[[int], AbstractContextManager[Mapping[str, torch.Tensor]]]
"""(number of a vector) -> the flat fp32 vector of each kind of state, in memory while the context lasts."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """Consecutive elements of a flattened box, where a rank holds them."""

    box: Box
    """The box."""
    start: int
    """First element inside the box."""
    vector: int
    """Number of the rank's vector that holds them."""
    offset: int
    """Where in that vector."""
    length: int
    """How many, at least 1."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How R ranks share a state; every rank has the same number of vectors, of the same lengths."""

    vectors: tuple[tuple[Box, ...], ...]
    """Boxes of each vector, in their order."""
    lengths: tuple[int, ...]
    """Elements of one rank's part of each vector, padding included."""
    num_ranks: int
    """R; 1 where nothing is sharded, because then each rank has all."""
    cuts_parameters: bool = False
    """Whether each box is cut into R parts (stage 3), or a vector of whole boxes is (stages 1 and 2)."""
    gaps: tuple[tuple[int, ...], ...] | None = None
    """Elements of padding after each box of each vector, before any cutting; None for none."""
    is_replicated: bool = False
    """Whether every rank has all (stage 0)."""
    groups: tuple[tuple[int, ...], ...] | None = None
    """Boxes of each parameter of each vector, where one has several: then the parameter is what stage 3 cuts."""
    copies: frozenset[str] = frozenset()
    """Names of boxes that these ranks hold and others write."""
    num_kinds: tuple[int, ...] | None = None
    """How many kinds of state each vector has, weights counted, where not all have as many; then never more than the
    vector before it."""

    def slices(self, rank: int) -> Iterator[Slice]:
        """What `rank` holds, in the order of its vectors and inside them."""
        for number in range(len(self.vectors)):
            yield from (self._cut_boxes if self.cuts_parameters else self._cut_vector)(number, rank)

    def shares(self, number: int) -> Iterator[Share]:
        """The boxes of each parameter of a vector."""
        boxes = iter(self.vectors[number])
        for count in self.groups[number] if self.groups else itertools.repeat(1, len(self.vectors[number])):
            yield tuple(itertools.islice(boxes, count))

    def places(self, number: int) -> Iterator[tuple[Box, int]]:
        """The boxes of a vector, and where in all of it each begins."""
        return zip(self.vectors[number], self._begins(number), strict=False)

    def holders(self, number: int, first: int, length: int, replica: int) -> Iterator[tuple[int, int, int]]:
        """Who holds `length` elements of all of a vector from `first` on: rank, where in its part, how many.

        `replica` is the rank that asks, and the answer where every rank has all. Not for stage 3.
        """
        assert not self.cuts_parameters, "boxes are cut, not vectors"
        part = self.lengths[number]
        if self.is_replicated:
            yield replica, first, length
            return
        end = first + length
        while first < end:
            rank, offset = divmod(first, part)
            count = min(part - offset, end - first)
            yield rank, offset, count
            first += count

    def written(self, number: int) -> list[Box]:
        """The boxes of a vector that these ranks write."""
        return [box for box in self.vectors[number] if box.name not in self.copies]

    def _begins(self, number: int) -> list[int]:
        """Where each box of a vector begins, and where the next would."""
        gaps = self.gaps[number] if self.gaps else itertools.repeat(0)
        boxes = self.vectors[number]
        return [0, *itertools.accumulate(box.size + gap for box, gap in zip(boxes, gaps, strict=False))]

    def _cut_vector(self, number: int, rank: int) -> Iterator[Slice]:
        length = self.lengths[number]
        begin, end = rank * length, (rank + 1) * length
        begins = self._begins(number)
        for place in range(max(0, bisect.bisect_right(begins, begin) - 1), len(self.vectors[number])):
            box, at = self.vectors[number][place], begins[place]
            if at >= end:
                return
            first, last = max(at, begin), min(at + box.size, end)
            if first < last:
                yield Slice(box, first - at, number, first - begin, last - first)

    def _cut_boxes(self, number: int, rank: int) -> Iterator[Slice]:
        at = 0
        for share in self.shares(number):
            size = sum(box.size for box in share)
            part, begin = -(-size // self.num_ranks), 0
            for box in share:
                first, last = max(rank * part, begin), min((rank + 1) * part, begin + box.size)
                if first < last:
                    yield Slice(box, first - begin, number, at + first - rank * part, last - first)
                begin += box.size
            at += part
        assert at == self.lengths[number], f"parts of {at} elements in a vector of {self.lengths[number]}"

    def bounds(self, number: int) -> tuple[int, ...]:
        """How many elements of a vector that are to be written lie before each rank's part, and how many in all."""
        length, boxes, begins = self.lengths[number], self.vectors[number], self._begins(number)
        sizes = [0 if box.name in self.copies else box.size for box in boxes]
        before = [0, *itertools.accumulate(sizes)]
        bounds = []
        for begin in range(0, (self.num_ranks + 1) * length, length) if length else [0] * (self.num_ranks + 1):
            place = bisect.bisect_right(begins, begin) - 1
            inside = min(begin - begins[place], sizes[place]) if place < len(boxes) else 0
            bounds.append(before[place] + inside)
        return tuple(bounds)


def sharded(
    stage: int,
    num_ranks: int,
    shares: Sequence[Sequence[Box | Share]],
    lengths: Sequence[int],
    gaps: Sequence[Sequence[int]] | None = None,
    copies: Iterable[str] = (),
    num_kinds: Sequence[int] | None = None,
) -> Layout:
    """Layout of ZeRO 1 to 3: what each vector holds of its parameters, elements of a rank's part of it, padding behind
    each parameter, what others write, and kinds of state of each vector.
    """
    vectors = [[_share(one) for one in vector] for vector in shares]
    boxes = tuple(tuple(itertools.chain.from_iterable(vector)) for vector in vectors)
    groups = tuple(tuple(map(len, vector)) for vector in vectors)
    if gaps:
        pairs = [zip(vector, each, strict=False) for vector, each in zip(vectors, gaps, strict=True)]
        padding = tuple(tuple(itertools.chain(*((0,) * (len(s) - 1) + (gap,) for s, gap in pair))) for pair in pairs)
    return Layout(
        boxes,
        tuple(lengths),
        num_ranks,
        stage == 3,
        padding if gaps else None,
        groups=groups if any(count > 1 for group in groups for count in group) else None,
        copies=frozenset(copies),
        num_kinds=_unlike(num_kinds),
    )


def replicated(
    shares: Sequence[Box | Share], copies: Iterable[str] = (), num_kinds: Sequence[int] | None = None
) -> Layout:
    """Layout of stage 0: each parameter a vector of its own, on every rank."""
    vectors = tuple(map(_share, shares))
    lengths = tuple(sum(box.size for box in share) for share in vectors)
    unlike = _unlike(num_kinds)
    return Layout(vectors, lengths, 1, is_replicated=True, copies=frozenset(copies), num_kinds=unlike)


def _unlike(num_kinds: Sequence[int] | None) -> tuple[int, ...] | None:
    """Numbers of kinds, or None where they are all the same."""
    if num_kinds is None or len(set(num_kinds)) < 2:
        return None
    assert list(num_kinds) == sorted(num_kinds, reverse=True), f"vectors of {num_kinds} kinds of state, in this order"
    return tuple(num_kinds)


def _share(one: Box | Share) -> Share:
    return (one,) if isinstance(one, Box) else one
