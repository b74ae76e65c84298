"""Decides which documents stay: one goes where one that stays is similar enough, and for no other reason.

    verified pairs (document, better one) of a bundle of tasks -> settle -> rows (document, state, kept one, similarity)

This is the greedy choice from the best document to the worst, whatever the order in which it is found out. A document
whose better ones are all removed stays, so that no chain of neighbours leads away from what is really similar. Better
ones that lie in another bundle are looked up in what was decided a round ago; rounds go on until all is decided.
"""

import dataclasses
from pathlib import Path

import numpy as np

from data_pipeline.building.tables import Cut, save_array

UNDECIDED, KEPT, REMOVED = 0, 1, 2
MOST_ROUNDS = 32
"""What is undecided then, because a chain leads through so many bundles, stays."""


@dataclasses.dataclass(frozen=True)
class Settled:
    """What was decided in one build."""

    folder: Path
    """Where it lies."""
    cut: Cut
    """How the tasks are bundled."""

    @property
    def num_parts(self) -> int:
        """Bundles of tasks, or one part where nothing is bundled."""
        return self.cut.num_bundles or 1

    def tasks(self, part: int) -> range:
        """Tasks whose documents are decided together."""
        return self.cut.tasks(part) if self.cut.num_bundles else range(self.cut.num_tasks)

    def settle(self, round_number: int, part: int, pairs: np.ndarray) -> int:
        """Decides what can be decided of verified pairs, uint64 [P, 3], sorted; returns how many documents cannot."""
        path = self._path(round_number, part)
        if not path.exists():
            rows = undecided(pairs)
            states = np.zeros(len(pairs), np.uint64)
            if round_number:
                rows = np.load(self._path(round_number - 1, part))
                states = self._states(round_number - 1, pairs[:, 1])
            save_array(path, settle(pairs, rows, states, self._is_in(part, pairs[:, 1])))
        return int((np.load(path, mmap_mode="r")[:, 1] == UNDECIDED).sum())

    def removed(self, round_number: int, part: int) -> np.ndarray:
        """Removed documents, the ones that stay in their place and bits of the similarity, uint64 [N, 3], sorted."""
        rows = np.load(self._path(round_number, part))
        return rows[rows[:, 1] == REMOVED][:, [0, 2, 3]]

    def removed_of(self, round_number: int, task: int) -> np.ndarray:
        """The same of one task."""
        rows = self.removed(round_number, task // self.cut.bundle_size if self.cut.num_bundles else 0)
        return rows[rows[:, 0] >> np.uint64(32) == task]

    def _is_in(self, part: int, places: np.ndarray) -> np.ndarray:
        tasks = self.tasks(part)
        return (places >= np.uint64(tasks.start << 32)) & (places < np.uint64(tasks.stop << 32))

    def _states(self, round_number: int, places: np.ndarray) -> np.ndarray:
        """What was decided of documents, uint64 [N]; those that nothing is similar to stay."""
        states = np.full(len(places), KEPT, np.uint64)
        for part in range(self.num_parts):
            here = np.flatnonzero(self._is_in(part, places))
            rows = np.load(self._path(round_number, part), mmap_mode="r") if len(here) else np.zeros((0, 4), np.uint64)
            if len(rows):
                at = np.minimum(np.searchsorted(rows[:, 0], places[here]), len(rows) - 1)
                states[here] = np.where(rows[at, 0] == places[here], rows[at, 1], np.uint64(KEPT))
        return states

    def _path(self, round_number: int, part: int) -> Path:
        return self.folder / f"settled-{round_number}-{part:05d}.npy"


def undecided(pairs: np.ndarray) -> np.ndarray:
    """Rows (document, state, kept one, similarity), uint64 [N, 4], of the documents of sorted pairs."""
    documents = np.unique(pairs[:, 0])
    return np.column_stack([documents, np.zeros((len(documents), 3), np.uint64)])


def settle(pairs: np.ndarray, rows: np.ndarray, states: np.ndarray, is_here: np.ndarray) -> np.ndarray:
    """Decides all that follows from what is known, rows uint64 [N, 4] in and out.

    pairs: uint64 [P, 3], sorted. states: of their better ones, uint64 [P]; where is_here, bool [P], they follow from
    rows instead. Of several kept ones that are similar enough when one is decided, the most similar counts.
    """
    rows, states = rows.copy(), states.copy()
    better = np.minimum(np.searchsorted(rows[:, 0], pairs[:, 1]), max(len(rows) - 1, 0))
    has_row = rows[better, 0] == pairs[:, 1] if len(rows) else np.zeros(len(pairs), bool)
    states[is_here & ~has_row] = KEPT
    follows = is_here & has_row
    document = np.searchsorted(rows[:, 0], pairs[:, 0])
    open_pairs = np.arange(len(pairs))
    while True:
        open_pairs = open_pairs[rows[document[open_pairs], 1] == UNDECIDED]
        if not len(open_pairs):
            return rows
        state = np.where(follows[open_pairs], rows[better[open_pairs], 1], states[open_pairs])
        starts = np.flatnonzero(np.diff(document[open_pairs], prepend=-1))
        at = document[open_pairs][starts]
        all_removed = np.logical_and.reduceat(state == REMOVED, starts)
        goes = open_pairs[state == KEPT]
        goes = goes[np.lexsort([pairs[goes, 1], -pairs[goes, 2].view(np.float64), document[goes]])]
        goes = goes[np.diff(document[goes], prepend=-1) > 0]
        if not len(goes) and not all_removed.any():
            return rows
        rows[at[all_removed], 1] = KEPT
        rows[document[goes], 1] = REMOVED
        rows[document[goes], 2:] = pairs[goes, 1:]
