"""Near copies of one build: where each of its steps is kept, and what it found in the end.

bands    documents that share a band of their sketches meet by its key          (tables, sketches, pairs)
sets     shingle sets of the pairs meet by the better document, and are compared (sets)
verified pairs that are similar enough go back to their tasks                    (tables)
settled  which documents stay                                                    (settling)
"""

import dataclasses
from pathlib import Path

import numpy as np

from data_pipeline.building.near.pairs import BUCKET_ROWS, candidate_pairs, most_shared
from data_pipeline.building.near.report import read_clusters
from data_pipeline.building.near.sets import ShingleSets, verified_pairs
from data_pipeline.building.near.settling import Settled
from data_pipeline.building.tables import Cut, Tables


@dataclasses.dataclass(frozen=True)
class NearCopies:
    """Looks for near copies in one build; what is found already is not looked for again."""

    folder: Path
    """Where everything lies."""
    similarity: float
    """How similar a removed document is at least to the one that stays."""
    bands_cut: Cut
    """How the keys of bands are cut."""
    num_comparisons: int = 1
    """Ranges that the documents to be compared are cut into."""
    last_round: int = 0
    """The round that it is in, or in which all was decided."""

    @property
    def bands(self) -> Tables:
        """Where documents that share bands meet; answers are pairs (document, better one)."""
        return Tables(self.folder, self.bands_cut, "band-", most_shared)

    @property
    def sets(self) -> ShingleSets:
        """Where the shingle sets of pairs meet."""
        return ShingleSets(self.folder, self._pairs_cut)

    @property
    def verified(self) -> Tables:
        """Pairs that are similar enough; only the way back is used."""
        return Tables(self.folder, self._pairs_cut, "pair-")

    @property
    def settled(self) -> Settled:
        """What is decided."""
        return Settled(self.folder, self.bands_cut)

    @property
    def _pairs_cut(self) -> Cut:
        return dataclasses.replace(self.bands_cut, num_ranges=self.num_comparisons)

    def pair(self, index: int) -> None:
        """Finds what is to be compared by the keys of one range."""
        if not self.bands.is_answered(index):
            self.bands.answer(index, candidate_pairs(self.bands.rows(index, BUCKET_ROWS)))

    def pairs_of(self, task: int) -> np.ndarray:
        """Pairs of the documents of a task with better ones, uint64 [P, 2]."""
        return self.bands.answers(task, task + 1).reshape(-1, 2)

    def compare(self, index: int) -> None:
        """Compares the documents of one range."""
        if not self.verified.is_answered(index):
            self.verified.answer(index, verified_pairs(self.sets, index, self.similarity))

    def settle(self, part: int) -> int:
        """Decides in this round what can be decided of some tasks' documents; returns how many cannot."""
        tasks = self.settled.tasks(part)
        return self.settled.settle(self.last_round, part, self.verified.answers(tasks.start, tasks.stop))

    def removed_of(self, task: int) -> np.ndarray:
        """Removed documents of a task, those that stay in their place and bits of the similarity, uint64 [N, 3]."""
        return self.settled.removed_of(self.last_round, task)

    def sampled_of(self, task: int) -> np.ndarray:
        """Documents of a task whose beginnings are to be shown, uint64 [N], sorted."""
        clusters = read_clusters(self.folder)
        shown = {place for one in clusters for place in (one.kept, *(place for place, _ in one.samples))}
        return np.array(sorted(place for place in shown if place >> 32 == task), np.uint64)
