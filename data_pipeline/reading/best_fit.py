"""Best-fit decreasing: pieces of documents into the rows of a block, each block by itself.

    costs of pieces -> largest first -> each into the row that it leaves fullest -> number of its row, or none

"Fewer Truncations Improve Language Modeling" (Ding et al., arXiv 2404.10830) packs whole documents so for decoders. A row
may have several capacities at once, as an encoder's and a decoder's row of the same documents. Many blocks are packed
in step with each other, since numpy's fixed costs are per call.
"""

import numpy as np

from data_pipeline.reading.draws import before


def best_fit(costs: np.ndarray, counts: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Row of each piece in its block, int64 [P], -1 where no row has room for it.

    `costs` int64 [D, P] with `counts`, int64 [B], pieces of each block; `room`, int64 [D, B, R], is what rows have left
    of each capacity, and becomes what they have left afterwards (-1 where there is no such row).
    """
    rows = np.full(costs.shape[1], -1)
    if not len(rows):
        return rows
    scale = 1.0 / np.maximum(room.max(axis=(1, 2)), 1)
    order = np.lexsort((-(costs * scale[:, None]).max(axis=0), np.repeat(np.arange(len(counts)), counts)))
    # blocks with most pieces first, so that those which still have one are always the first few
    blocks = np.argsort(-counts, kind="stable")
    first, left = before(counts)[blocks], room[:, blocks].astype(np.int32)
    num_active = np.searchsorted(-counts[blocks], -np.arange(counts.max()))
    for number, active in enumerate(num_active.tolist()):
        piece = order[first[:active] + number]
        after = left[:, :active] - costs[:, piece, None].astype(np.int32)
        row = _unused(after, scale).argmin(axis=1)
        fits = (after[:, np.arange(active), row] >= 0).all(axis=0)
        block, row = np.flatnonzero(fits), row[fits]
        left[:, block, row] = after[:, block, row]
        rows[piece[block]] = row
    room[:, blocks] = left
    return rows


def _unused(after: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """How far from full rows would be, [B, R], given what they would have left, int [D, B, R]; much where it is < 0."""
    if len(after) == 1:
        return after[0].view(np.uint32)  # what is negative becomes huge
    unused = np.square(after * scale[:, None, None]).sum(axis=0)
    unused[(after < 0).any(axis=0)] = np.inf
    return unused
