"""Pieces go into rows that have room for them, and pairs of rows are filled evenly."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.reading.best_fit import best_fit, pair_fit

BLOCKS = st.lists(st.lists(st.integers(0, 20), max_size=12), min_size=1, max_size=4)
PAIRS = st.lists(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12), min_size=1, max_size=4)


def plain_best_fit(costs, room):
    """The textbook, piece by piece."""
    rows, room = [-1] * len(costs), list(room)
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        fitting = [row for row, left in enumerate(room) if left >= costs[piece]]
        if fitting:
            rows[piece] = min(fitting, key=lambda row: room[row])
            room[rows[piece]] -= costs[piece]
    return rows, room


@given(BLOCKS, st.integers(1, 5), st.integers(1, 20))
def test_blocks_in_step_are_packed_like_each_by_the_textbook(blocks, num_rows, capacity):
    room = np.full((len(blocks), num_rows), capacity)
    room[0, num_rows // 2 + 1 :] = -1  # the first block has fewer rows
    expected = [plain_best_fit(block, left) for block, left in zip(blocks, room.tolist(), strict=True)]
    costs = np.array([cost for block in blocks for cost in block], np.int64)
    rows = best_fit(costs, np.array([len(block) for block in blocks]), room)
    assert rows.tolist() == [row for rows, _ in expected for row in rows]
    assert room.tolist() == [left for _, left in expected]


@given(PAIRS, st.integers(1, 5), st.integers(1, 12), st.integers(1, 12))
def test_pairs_never_overflow_and_leave_out_only_what_no_row_has_room_for(blocks, num_rows, first, second):
    room = np.empty((2, len(blocks), num_rows), np.int64)
    room[0], room[1] = first, second
    costs = np.array([cost for block in blocks for cost in block], np.int64).reshape(-1, 2).T
    counts = np.array([len(block) for block in blocks])
    rows = pair_fit(costs, counts, room)
    block = np.repeat(np.arange(len(blocks)), counts)
    used = np.zeros((2, len(blocks), num_rows), np.int64)
    placed = rows >= 0
    for kind in range(2):
        np.add.at(used[kind], (block[placed], rows[placed]), costs[kind, placed])
    assert np.array_equal(used, np.array([first, second])[:, None, None] - room)
    assert (room >= 0).all()
    for piece in np.flatnonzero(~placed):
        assert (costs[:, piece, None] > room[:, block[piece]]).any(axis=0).all()
