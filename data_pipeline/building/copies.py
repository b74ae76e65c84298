"""Which documents, or lines, of a build repeat earlier ones: all hashes, brought together by `tables`.

    Copies.save_hashes ... -> bundle ... -> find ... -> hand_back ... -> of(task)

    keys-00000.npy        the hashes of one range without copies, uint64 [N, 2], sorted: 16 bytes for each document

A finished dataset keeps these, so that documents of sources that are added later are compared with them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.building.tables import Cut, Tables, in_order, in_range, numbers_of, places, range_bounds, save_array


@dataclasses.dataclass(frozen=True)
class Copies:
    """Looks for copies in one build; what is found already is not looked for again."""

    folder: Path
    """Where the tables lie."""
    cut: Cut
    """How they are cut."""
    prefix: str = ""
    """What the names of their files begin with."""
    keeps_keys: bool = False
    """Whether the keys of each range are kept."""
    known: tuple[Path, ...] = ()
    """The keys of the dataset that is added to, range by range."""

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
        keys = self.keys_path(index)
        if self.tables.is_answered(index) and (keys.exists() or not self.keeps_keys):
            return
        rows = in_order([*known_rows(self.known, index, self.cut.num_ranges), self.tables.rows(index)])
        is_copy = repeats(rows)
        if self.keeps_keys:
            save_array(keys, rows[~is_copy, :2].astype("<u8"))
        self.tables.answer(index, np.sort(rows[is_copy, 2]))

    def keys_path(self, index: int) -> Path:
        """Where the keys of a range are."""
        return self.folder / f"{self.prefix}keys-{index:05d}.npy"

    def of(self, task: int) -> np.ndarray:
        """Numbers of the documents of a task that repeat earlier ones, uint64 [N]."""
        return numbers_of(self.tables.answers(task, task + 1))


def known_rows(paths: Sequence[Path], index: int, num_ranges: int) -> Iterator[np.ndarray]:
    """Rows of the keys in a range, in place 0 before all tasks; only files that hold some of it are opened."""
    first, last = (bound * len(paths) >> 64 for bound in range_bounds(index, num_ranges))
    for path in paths[first : last + 1]:
        found = in_range(np.load(path, mmap_mode="r"), index, num_ranges)
        yield np.column_stack([found, np.zeros(len(found), np.uint64)])


def repeats(rows: np.ndarray) -> np.ndarray:
    """Which of sorted rows, uint64 [M, 3], have a hash that an earlier row has too, bool [M]."""
    return np.concatenate([np.zeros(min(len(rows), 1), bool), (rows[1:, :2] == rows[:-1, :2]).all(axis=1)])
