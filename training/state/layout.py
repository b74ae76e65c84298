"""Where ZeRO keeps each element of the training state in the flat vectors of a rank.

ZeRO flattens the boxes of an optimizer group into vectors, and cuts either each vector (stages 1 and 2, arXiv
1910.02054) or each box (stage 3) into one part per rank; at stage 0 every rank has all, each box a vector of its own.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from training.state.boxes import Box


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

    def slices(self, rank: int) -> Iterator[Slice]:
        """What `rank` holds, in the order of its vectors and inside them."""
        for number in range(len(self.vectors)):
            yield from (self._cut_boxes if self.cuts_parameters else self._cut_vector)(number, rank)

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
        for box in self.vectors[number]:
            part = -(-box.size // self.num_ranks)
            first, last = rank * part, min((rank + 1) * part, box.size)
            if first < last:
                yield Slice(box, first, number, at, last - first)
            at += part
        assert at == self.lengths[number], f"parts of {at} elements in a vector of {self.lengths[number]}"

    def bounds(self, number: int) -> tuple[int, ...]:
        """How many elements of a vector, padding left out, lie before the part of each rank, and how many in all."""
        length, boxes, begins = self.lengths[number], self.vectors[number], self._begins(number)
        before = [0, *itertools.accumulate(box.size for box in boxes)]
        bounds = []
        for begin in range(0, (self.num_ranks + 1) * length, length) if length else [0] * (self.num_ranks + 1):
            place = bisect.bisect_right(begins, begin) - 1
            inside = min(begin - begins[place], boxes[place].size) if place < len(boxes) else 0
            bounds.append(before[place] + inside)
        return tuple(bounds)


def sharded(
    stage: int,
    num_ranks: int,
    boxes: Sequence[Sequence[Box]],
    lengths: Sequence[int],
    gaps: Sequence[Sequence[int]] | None = None,
) -> Layout:
    """Layout of ZeRO 1 to 3: boxes of each vector, elements of a rank's part of it, padding after each box."""
    padding = tuple(map(tuple, gaps)) if gaps else None
    return Layout(tuple(map(tuple, boxes)), tuple(lengths), num_ranks, stage == 3, padding)


def replicated(boxes: Sequence[Box]) -> Layout:
    """Layout of stage 0: each box a vector of its own, on every rank."""
    return Layout(tuple((box,) for box in boxes), tuple(box.size for box in boxes), 1, is_replicated=True)
