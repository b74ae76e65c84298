"""Which documents, or lines, of a build repeat earlier ones: all hashes, brought together by `tables`.

Copies.save_hashes ... -> bundle ... -> find ... -> hand_back ... -> of(task)
"""

import dataclasses
from pathlib import Path

import numpy as np

from data_pipeline.building.tables import Cut, Tables, numbers_of, places


@dataclasses.dataclass(frozen=True)
class Copies:
    """Looks for copies in one build; what is found already is not looked for again."""

    folder: Path
    """Where the tables lie."""
    cut: Cut
    """How they are cut."""
    prefix: str = ""
    """What the names of their files begin with."""

    @property
    def tables(self) -> Tables:
        """Where the hashes and the copies among them are kept."""
        return Tables(self.folder, self.cut, self.prefix)

    def num_hashed(self, task: int) -> int | None:
        """Hashes of a task that has saved its own, None of another."""
        return self.tables.num_saved(task)

    def save_hashes(self, task: int, keys: np.ndarray) -> None:
        """Takes the hashes of the documents of a task, uint64 [2, N], in their order."""
        self.tables.save(task, np.vstack([keys, places(task, np.arange(keys.shape[1]))]).T)

    def find(self, index: int) -> None:
        """Looks for copies in a range of hashes."""
        if not self.tables.is_answered(index):
            self.tables.answer(index, find_copies(self.tables.rows(index)))

    def of(self, task: int) -> np.ndarray:
        """Numbers of the documents of a task that repeat earlier ones, uint64 [N]."""
        return numbers_of(self.tables.answers(task, task + 1))


def find_copies(rows: np.ndarray) -> np.ndarray:
    """Places of all rows whose hash an earlier row has too, ascending, uint64 [N]; rows uint64 [M, 3] are sorted."""
    repeats = (rows[1:, :2] == rows[:-1, :2]).all(axis=1)
    return np.sort(rows[1:, 2][repeats])
