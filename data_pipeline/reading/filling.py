"""Fills the rows of blocks with the documents in them: whole where they fit, cut where they are longer than a row.

    stretches of documents -> too long ones cut -> best_fit -> what fits nowhere cut into the largest gaps -> rows

A block has a fixed number of rows for a fixed number of tokens, so nobody needs an index to know which rows there are.
What that costs: where whole documents would leave too much of the rows empty, some are cut to fill them.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from data_pipeline.reading.best_fit import best_fit, pair_fit
from data_pipeline.reading.draws import places


@dataclasses.dataclass(frozen=True)
class Stretches:
    """Documents or parts of them, by their places in their source; int64 [P] unless said otherwise."""

    block: np.ndarray
    """Number of the block each is in, ascending."""
    start: np.ndarray
    """First token in the source."""
    lengths: np.ndarray
    """Tokens."""
    begins: np.ndarray
    """Whether its document begins with it, bool."""
    ends: np.ndarray
    """Whether its document ends with it, bool."""
    passes: np.ndarray
    """How often the source was gone through before."""

    def __len__(self) -> int:
        return len(self.start)

    def select(self, rows: np.ndarray | slice) -> "Stretches":
        """Some of them: by index or by a mask."""
        return Stretches(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def heads(self, lengths: np.ndarray) -> "Stretches":
        """The first `lengths` tokens of each."""
        whole = lengths == self.lengths
        return dataclasses.replace(self, lengths=lengths, begins=self.begins & (lengths > 0), ends=self.ends & whole)

    def tails(self, begin: np.ndarray) -> "Stretches":
        """All but the first `begin` tokens of each."""
        return dataclasses.replace(
            self, start=self.start + begin, lengths=self.lengths - begin, begins=self.begins & (begin == 0)
        )

    @classmethod
    def joined(cls, parts: list["Stretches"]) -> "Stretches":
        """Several, one after the other."""
        return cls(
            *(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(cls))
        )


class Costs(Protocol):
    """What an objective makes of stretches, in each of D rows that take it."""

    def __call__(self, stretches: Stretches) -> np.ndarray:
        """Tokens of each, int64 [D, P]."""

    def longest(self, stretches: Stretches, room: np.ndarray) -> np.ndarray:
        """Most tokens of each that become no more than `room`, int64 [D, P]; 0 if too few for a target: int64 [P]."""


class Plan(NamedTuple):
    """How a split is divided into blocks, and these into rows."""

    tokens: int
    """Tokens of the split in a block."""
    num_rows: int
    """Rows of a block; the last one may have fewer."""
    capacity: tuple[int, ...]
    """Tokens of a row, and of the other one beside it."""
    longest: int
    """Tokens of a document that is never cut by the border of a block."""
    piece: int
    """Tokens of the pieces that longer documents are cut into; 0 is as many as fill a row."""
    overlap: int
    """Tokens that neighbouring pieces of a document share: the last target of one and the first input of the next."""


class Filled(NamedTuple):
    """Stretches in the order of blocks and their rows."""

    stretches: Stretches
    row: np.ndarray
    """Row of each in its block, int64 [P]."""


def fill(stretches: Stretches, num_rows: np.ndarray, plan: Plan, costs: Costs) -> Filled:
    """Rows of all stretches; blocks have `num_rows` of them, int64 [B].

    A row may get more than it has room for where there is not enough of it: that comes last in it.
    """
    pieces, sizes = _short_enough(stretches, plan, costs)
    counts = np.bincount(pieces.block, minlength=len(num_rows))
    room = np.repeat(np.array(plan.capacity)[:, None, None], len(num_rows), axis=1).repeat(plan.num_rows, axis=2)
    room[:, np.arange(plan.num_rows) >= num_rows[:, None]] = -1
    rows = best_fit(sizes[0], counts, room[0]) if len(sizes) == 1 else pair_fit(sizes, counts, room)
    placed = rows >= 0
    parts, numbers = [pieces.select(placed)], [rows[placed]]
    late = [np.zeros(int(placed.sum()), bool)]
    for part, row, fits in _into_gaps(pieces.select(~placed), room, plan, costs):
        parts.append(part)
        numbers.append(row)
        late.append(~fits)
    result, row, is_late = Stretches.joined(parts), np.concatenate(numbers), np.concatenate(late)
    order = np.lexsort((result.start, is_late, row, result.block))
    return Filled(result.select(order), row[order])


def _short_enough(stretches: Stretches, plan: Plan, costs: Costs) -> tuple[Stretches, np.ndarray]:
    """The same with those cut that no row holds whole, and their costs, int64 [D, P]."""
    capacity = np.array(plan.capacity)[:, None]
    if plan.piece:
        too_long = (costs(_seen(stretches, plan)) > capacity).any(axis=0) | (stretches.lengths > plan.longest)
        stretches = _in_pieces(stretches, np.where(too_long, plan.piece, stretches.lengths))
    done = []
    left = stretches
    while len(left):
        most = costs.longest(_seen(left, plan), np.repeat(capacity, len(left), axis=1))
        # what no row takes anything of stays as it is, and finds no room later
        most = np.where(most > plan.overlap, most, left.lengths)
        done.append(left.heads(most))
        left = left.tails(most - plan.overlap).select(most < left.lengths)
    joined = Stretches.joined([stretches.select(slice(0)), *done])
    joined = joined.select(np.argsort(joined.block, kind="stable"))
    return joined, costs(joined)


def _seen(stretches: Stretches, plan: Plan) -> Stretches:
    """As much of each as a row might hold."""
    return stretches.heads(np.minimum(stretches.lengths, plan.longest))


def _in_pieces(stretches: Stretches, most: np.ndarray) -> Stretches:
    """Each in as few pieces of at most `most` tokens as it takes, as equal as can be."""
    count = -(-stretches.lengths // np.maximum(most, 1))
    number, total = places(count), np.repeat(stretches.lengths, count)
    begin, end = total * number // np.repeat(count, count), total * (number + 1) // np.repeat(count, count)
    whole = stretches.select(np.repeat(np.arange(len(stretches)), count))
    return whole.heads(end).tails(begin)


def _into_gaps(
    left: Stretches, room: np.ndarray, plan: Plan, costs: Costs
) -> Iterator[tuple[Stretches, np.ndarray, np.ndarray]]:
    """Cuts what has no row into the largest gaps, a piece of each block at a time: (stretches, rows, whether they fit).

    What no gap takes goes to the largest and does not fit it: it is left out later, and counted.
    """
    scale = 1.0 / np.array(plan.capacity)[:, None, None]
    while len(left):
        first = np.flatnonzero(np.diff(left.block, prepend=-1))
        now, block = left.select(first), left.block[first]
        row = (room[:, block] * scale).min(axis=0).argmax(axis=1)
        gap = room[:, block, row]
        most = costs.longest(now, gap)
        fits = most > 0
        most = np.where(fits, most, now.lengths)
        part = now.heads(most)
        room[:, block, row] -= np.where(fits, costs(part), 0)
        yield part, row, fits
        rest = now.tails(np.maximum(most - plan.overlap, 0))
        is_rest = rest.lengths > plan.overlap
        is_rest &= most < now.lengths
        others = np.ones(len(left), bool)
        others[first] = False
        left = Stretches.joined([rest.select(is_rest), left.select(others)])
        left = left.select(np.argsort(left.block, kind="stable"))
