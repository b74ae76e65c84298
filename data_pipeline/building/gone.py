"""Which documents of a task are left out as copies of others, counted while they go by."""

from typing import Any, TypeVar

import numpy as np

from data_pipeline.building.clean import CleanBatch
from data_pipeline.building.copies import Copies
from data_pipeline.building.formats.megatron import TokenBatch
from data_pipeline.building.near.near_copies import NearCopies
from data_pipeline.building.tables import numbers_of, places

BEGINNING = 240
"""Characters of a text that a report shows."""

Batch = TypeVar("Batch", CleanBatch, TokenBatch, CleanBatch | TokenBatch)


class Gone:
    """Copies and near copies among the documents of a task, as far as the passes that look for them are done."""

    def __init__(self, task: int, source: int, copies: Copies | None, near: NearCopies | None):
        """`source`: number of that which the documents are from."""
        none = np.zeros(0, np.uint64)
        self._task, self._source, self._first = task, source, 0
        self._copies = none if copies is None else copies.of(task)
        self._near = none if near is None else numbers_of(near.removed_of(task)[:, 0])
        self._samples = none if near is None else near.sampled_of(task)
        self._beginnings: dict[int, tuple[int, str]] = {}

    def left(self, batch: Batch) -> tuple[np.ndarray, Batch]:
        """What is left of the next documents of the task, and their numbers in it, uint64 [N]."""
        numbers = np.arange(self._first, self._first + len(batch.sizes), dtype=np.uint64)
        self._first += len(numbers)
        left = ~(np.isin(numbers, self._copies) | np.isin(numbers, self._near))
        if isinstance(batch, CleanBatch):
            for index in np.flatnonzero(np.isin(all_places := places(self._task, numbers), self._samples)):
                self._beginnings[int(all_places[index])] = self._source, batch.texts[index][:BEGINNING]
        return numbers[left], batch.only(left)

    def facts(self) -> dict[str, Any]:
        """How many copies and near copies there are, and beginnings of samples."""
        return {"repeats": len(self._copies), "near_copies": len(self._near), "beginnings": self._beginnings}
