"""Blocks of tensors, and the runs of elements that two blocks of one tensor share.

A rank holds a box of a tensor (all of it, unless layers are cut between ranks), flattened in row-major order. Weights
and moments are the same numbers however boxes lie, so going from one cut to another is copying shared runs.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from model.network.tensor_ranks import Division


@dataclasses.dataclass(frozen=True)
class Box:
    """A block of a tensor."""

    name: str
    """The tensor's name in the model."""
    tensor: tuple[int, ...]
    """Shape of the whole tensor."""
    offset: tuple[int, ...]
    """First index of the block in each dim."""
    shape: tuple[int, ...]
    """Shape of the block."""

    @classmethod
    def whole(cls, name: str, shape: Sequence[int]) -> "Box":
        """All of a tensor."""
        return cls(name, tuple(shape), (0,) * len(shape), tuple(shape))

    @classmethod
    def of_rank(cls, name: str, shape: Sequence[int], division: Division, rank: int, size: int) -> tuple["Box", ...]:
        """What a tensor rank holds of a tensor that is cut, one box for each section."""
        dim = division.dim
        before, behind = (0,) * dim, (0,) * (len(shape) - dim - 1)
        return tuple(
            cls(name, tuple(shape), (*before, first, *behind), (*shape[:dim], length, *shape[dim + 1 :]))
            for first, length in division.parts(rank, size)
        )

    @property
    def size(self) -> int:
        """Its elements."""
        return math.prod(self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its tensor."""
        return self.shape == self.tensor

    @property
    def is_inside(self) -> bool:
        """Whether it is a block of its tensor at all."""
        if not len(self.tensor) == len(self.offset) == len(self.shape):
            return False
        dims = zip(self.tensor, self.offset, self.shape, strict=True)
        return all(first >= 0 < extent <= length - first for length, first, extent in dims)


def shared(one: Box, other: Box) -> Iterator[tuple[int, int, int]]:
    """Runs that both boxes of a tensor hold: first element inside the one, inside the other, number of elements."""
    if (one.offset, one.shape) == (other.offset, other.shape):
        yield 0, 0, one.size
        return
    low = [max(a, b) for a, b in zip(one.offset, other.offset, strict=True)]
    ends = ([first + extent for first, extent in zip(box.offset, box.shape, strict=True)] for box in (one, other))
    extents = [min(a, b) - first for a, b, first in zip(*ends, low, strict=True)]
    if min(extents) <= 0:
        return
    dim = len(extents) - 1  # a run spans the dims from here on, all but this one whole in both
    while dim > 0 and extents[dim] == one.shape[dim] == other.shape[dim]:
        dim -= 1
    length = math.prod(extents[dim:])
    for index in itertools.product(
        *(range(first, first + n) for first, n in zip(low[:dim], extents[:dim], strict=True))
    ):
        place = (*index, *low[dim:])
        yield _flat(one, place), _flat(other, place), length


def _flat(box: Box, place: Sequence[int]) -> int:
    """Number of an element of the tensor inside the flattened box."""
    number = 0
    for index, first, extent in zip(place, box.offset, box.shape, strict=True):
        number = number * extent + index - first
    return number
