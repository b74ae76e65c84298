"""Which documents of a task are left out as copies of others, counted by source while they go by."""

from collections import Counter
from typing import Any

import numpy as np

from data_pipeline.building.clean import CleanBatch
from data_pipeline.building.copies import Copies
from data_pipeline.building.near.near_copies import NearCopies
from data_pipeline.building.tables import numbers_of, places

BEGINNING = 240
"""Characters of a text that a report shows."""


class Gone:
    """Copies and near copies among the documents of a task, as far as the passes that look for them are done."""

    def __init__(self, task: int, copies: Copies | None, near: NearCopies | None):
        none = np.zeros(0, np.uint64)
        self._task, self._first = task, 0
        self._copies = none if copies is None else copies.of(task)
        self._near = none if near is None else numbers_of(near.removed_of(task)[:, 0])
        self._samples = none if near is None else near.sampled_of(task)
        self._compared: Counter[int] = Counter()
        self._removed: Counter[int] = Counter()
        self._beginnings: dict[int, tuple[int, str]] = {}

    def left(self, source: int, batch: CleanBatch) -> tuple[np.ndarray, CleanBatch]:
        """What is left of the next documents of the task, all of one source, and their numbers in it, uint64 [N]."""
        numbers = np.arange(self._first, self._first + len(batch.texts), dtype=np.uint64)
        self._first += len(numbers)
        is_copy, is_near = np.isin(numbers, self._copies), np.isin(numbers, self._near)
        self._compared[source] += int((~is_copy).sum())
        self._removed[source] += int(is_near.sum())
        for index in np.flatnonzero(np.isin(all_places := places(self._task, numbers), self._samples)):
            self._beginnings[int(all_places[index])] = source, batch.texts[index][:BEGINNING]
        left = ~(is_copy | is_near)
        return numbers[left], batch.only(left)

    def facts(self) -> dict[str, Any]:
        """How many copies there are; by source, documents that are none and near copies; beginnings of samples."""
        return {
            "repeats": len(self._copies),
            "compared": dict(self._compared),
            "near_copies": dict(self._removed),
            "beginnings": self._beginnings,
        }
