"""Which pieces of documents share a row: those of each block among themselves, many blocks in step with each other.

best_fit   one capacity:   pieces, largest first, each into the row that it leaves fullest
pair_fit   two of them:    rows, one after the other, each filled with the pieces that leave least of both

Best-fit decreasing is how "Fewer Truncations Improve Language Modeling" (Ding et al., arXiv 2404.10830) packs documents
for decoders. Where a row of an encoder and one of a decoder are filled at once it would use up early what goes together
well, so there every row takes what suits it from all that is left. Blocks go in step since numpy's fixed costs are per
call; what is compared are whole numbers, or floats that come out the same on every machine.
"""

import numpy as np

from data_pipeline.reading.draws import before, places

NEVER = np.float32(2**30)
"""Tokens of a piece that is gone: more than any row has."""


def best_fit(costs: np.ndarray, counts: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Row of each piece in its block, int64 [P], -1 where no row has room for it.

    `costs` int64 [P], `counts` int64 [B] pieces of each block, ascending by block; `room`, int64 [B, R], is what rows
    have left, and becomes what they have left afterwards (-1 where there is no such row).
    """
    rows = np.full(len(costs), -1)
    order = np.lexsort((-costs, np.repeat(np.arange(len(counts)), counts)))
    # blocks with most pieces first, so that those which still have one are always the first few
    blocks = np.argsort(-counts, kind="stable")
    first, left = before(counts)[blocks], room[blocks].astype(np.int32)
    num_active = np.searchsorted(-counts[blocks], -np.arange(counts.max(initial=0)))
    for number, active in enumerate(num_active.tolist()):
        piece = order[first[:active] + number]
        after = left[:active] - costs[piece, None].astype(np.int32)
        # what would be less than nothing is more than anything as an unsigned number
        row = after.view(np.uint32).argmin(axis=1)
        fits = after[np.arange(active), row] >= 0
        block, row = np.flatnonzero(fits), row[fits]
        left[block, row] = after[block, row]
        rows[piece[block]] = row
    room[blocks] = left
    return rows


def pair_fit(costs: np.ndarray, counts: np.ndarray, room: np.ndarray) -> np.ndarray:
    """The same for `costs`, int64 [2, P], and `room`, int64 [2, B, R], of rows that must have room in both.

    A row gets the piece that leaves the least of it, and of what is left as much of either as all pieces left need.
    """
    rows = np.full(costs.shape[1], -1)
    pool = _Pool(costs, counts, room.max(axis=(1, 2)))
    num_rows = (room >= 0).all(axis=0).sum(axis=1)
    row = np.zeros(len(counts), np.int64)
    while len(pool.blocks):
        block = pool.blocks
        at = np.minimum(row[block], room.shape[2] - 1)
        place, found = pool.best(room[:, block, at])
        taken = pool.take(np.flatnonzero(found), place[found])
        rows[taken] = at[found]
        room[:, block[found], at[found]] -= costs[:, taken]
        row[block[~found]] += 1
        pool.keep(row[block] < num_rows[block])
    return rows


class _Pool:
    """Pieces of blocks that have no row yet."""

    def __init__(self, costs: np.ndarray, counts: np.ndarray, capacity: np.ndarray):
        self.blocks = np.arange(len(counts))
        """Numbers of the blocks that are not done."""
        self._scale = (1.0 / np.maximum(capacity, 1)).astype(np.float32)
        shape = len(counts), counts.max(initial=0)
        slot = np.repeat(np.arange(shape[0]), counts), places(counts)
        self._piece = np.zeros(shape, np.int64)
        self._piece[slot] = np.arange(costs.shape[1])
        self._costs = np.full((2, *shape), NEVER, np.float32)
        self._costs[:, *slot] = costs
        self._left, self._needed = counts.copy(), np.stack([np.bincount(slot[0], c, shape[0]) for c in costs])
        self._select(counts > 0)

    def best(self, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Place of the piece that suits each block's row, which has `room`, int64 [2, b], and whether any fits."""
        a, b = (each[:, None].astype(np.float32) - costs for each, costs in zip(room, self._costs, strict=True))
        nothing = np.minimum(a, b) < 0
        a *= self._scale[0]
        b *= self._scale[1]
        need = (self._needed * self._scale[:, None]).astype(np.float32)
        need /= np.maximum(need.sum(axis=0), np.float32(1e-9)) / 2
        waste = a * need[1][:, None]
        waste -= b * need[0][:, None]
        waste *= waste
        waste += a * a
        waste += b * b
        waste[nothing] = np.inf
        place = waste.argmin(axis=1)
        return place, ~nothing[np.arange(len(place)), place]

    def take(self, number: np.ndarray, place: np.ndarray) -> np.ndarray:
        """The pieces at some places of blocks, by number among those not done; they are gone then."""
        self._needed[:, number] -= self._costs[:, number, place]
        self._costs[:, number, place] = NEVER
        self._left[number] -= 1
        return self._piece[number, place]

    def keep(self, has_rows: np.ndarray) -> None:
        """Forgets blocks that have no row or no piece left, and now and then the places of pieces that are gone."""
        going = has_rows & (self._left > 0)
        if not going.all():
            self._select(going)
        if len(self.blocks) and 4 * self._left.max() < 3 * self._piece.shape[1]:
            order = np.argsort(self._costs[0] == NEVER, axis=1, kind="stable")[:, : self._left.max()]
            self._piece = np.take_along_axis(self._piece, order, axis=1)
            self._costs = np.take_along_axis(self._costs, order[None], axis=2)

    def _select(self, chosen: np.ndarray) -> None:
        self.blocks = self.blocks[chosen]
        self._piece, self._left = self._piece[chosen], self._left[chosen]
        self._costs, self._needed = self._costs[:, chosen], self._needed[:, chosen]
