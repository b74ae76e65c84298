"""Tables that bring together what belongs together in a build, sorted and cut on disk, and take the answers back.

    hashes-00000.npy      of each task: rows of (key, second key, place), uint64 [N, 3], sorted
      -> bundle-00000.npy     of many tasks together, where there are many
      -> repeats-00000.npy    answers to the rows whose keys lie in one range, uint64 [N] or [N, C], by place
      -> returned-00000.npy   answers of all ranges to the tasks of one bundle

A place is task << 32 | number of the document in the task, so equal keys lie in the order of the sources. If every
range looked into the file of every task, T tasks and R ranges would open T x R files, tens of millions for 10 TB. With
bundles of sqrt(T) tasks they open some T + R sqrt(T), on the way there and on the way back.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from common.files import written_aside

FEW_TASKS = 64
"""Up to so many are not bundled: two passes more would cost more than the files that they save."""
RANGE_ROWS = 2_000_000
"""Rows that are sorted at once (about 200 MB of memory)."""
_PLACE = np.uint64(32)
_NUMBER = np.uint64(2**32 - 1)


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the tables of a build are cut."""

    num_tasks: int
    """Tasks that rows come from."""
    num_ranges: int = 1
    """Ranges of keys that are looked at one at a time."""
    bundle_size: int = 1
    """Tasks that share a file; 1 where nothing is bundled."""
    first_task: int = 0
    """Number of the first of these tasks; those before it are of a dataset that they add to."""

    @property
    def num_bundles(self) -> int:
        """Files that tasks share; 0 where nothing is bundled."""
        return 0 if self.bundle_size == 1 else -(-self.num_tasks // self.bundle_size)

    @property
    def all_tasks(self) -> range:
        """Numbers of the tasks."""
        return range(self.first_task, self.first_task + self.num_tasks)

    def tasks(self, bundle: int) -> range:
        """The tasks of a bundle."""
        return self.all_tasks[bundle * self.bundle_size : (bundle + 1) * self.bundle_size]

    def bundle_of(self, task: int) -> int:
        """The bundle that a task is in."""
        return (task - self.first_task) // self.bundle_size


def cut(num_tasks: int, num_rows: int, rows_at_once: int | None = None, first_task: int = 0) -> Cut:
    """A cut that lets no range hold much more than rows_at_once rows, else RANGE_ROWS."""
    bundle_size = 1 if num_tasks <= FEW_TASKS else math.isqrt(num_tasks - 1) + 1
    return Cut(num_tasks, max(-(-num_rows // (rows_at_once or RANGE_ROWS)), 1), bundle_size, first_task)


@dataclasses.dataclass(frozen=True)
class Tables:
    """The tables of one question; what is there already is not made again."""

    folder: Path
    """Where they lie."""
    cut: Cut
    """How they are cut."""
    prefix: str = ""
    """What the names of their files begin with."""
    reduce: Callable[[np.ndarray], np.ndarray] = lambda answers: answers
    """What is made of the answers to the rows of some tasks, once those of all ranges are together, sorted."""

    # ---- there

    def num_saved(self, task: int) -> int | None:
        """Rows of a task that has saved its own, None of another."""
        path = self._path("hashes", task)
        return len(np.load(path, mmap_mode="r")) if path.exists() else None

    def save(self, task: int, rows: np.ndarray) -> None:
        """Takes the rows of a task, uint64 [N, 3]."""
        save_array(self._path("hashes", task), in_order([rows]))

    def bundle(self, index: int) -> None:
        """Makes one sorted table of those of a bundle's tasks."""
        path = self._path("bundle", index)
        if path.exists():
            return
        tables = [np.load(self._path("hashes", task), mmap_mode="r") for task in self.cut.tasks(index)]
        size = sum(map(len, tables))
        num_parts = max(-(-size // RANGE_ROWS), 1)
        header = {"descr": "<u8", "fortran_order": False, "shape": (size, 3)}
        with written_aside(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in range(num_parts):
                file.write(in_order([in_range(table, part, num_parts) for table in tables]).astype("<u8").tobytes())

    def rows(self, index: int, most_of_key: int | None = None) -> np.ndarray:
        """Rows of a range of keys, sorted, uint64 [N, 3]: all, or about as many of a key, the first of each file."""
        sources = [self._path("bundle", bundle) for bundle in range(self.cut.num_bundles)]
        sources = sources or [self._path("hashes", task) for task in self.cut.all_tasks]
        found = [in_range(np.load(source, mmap_mode="r"), index, self.cut.num_ranges) for source in sources]
        if most_of_key is not None:
            found = [first_of_keys(rows, max(most_of_key // len(sources), 1)) for rows in found]
        return in_order(found)

    # ---- and back

    def is_answered(self, index: int) -> bool:
        """Whether the answers of a range are there."""
        return self._path("repeats", index).exists()

    def answer(self, index: int, answers: np.ndarray) -> None:
        """Takes the answers of a range, uint64 [N] or [N, C], sorted: places, or rows that begin with one."""
        save_array(self._path("repeats", index), answers)

    def hand_back(self, index: int) -> None:
        """Gathers the answers of all ranges to the tasks of a bundle."""
        path = self._path("returned", index)
        if not path.exists():
            tasks = self.cut.tasks(index)
            save_array(path, self._gathered(tasks.start, tasks.stop))

    def answers(self, first: int, stop: int) -> np.ndarray:
        """Answers to the rows of tasks first ... stop - 1 (of one bundle, where there are bundles), sorted."""
        if not self.cut.num_bundles:
            return self._gathered(first, stop)
        return _between(self._path("returned", self.cut.bundle_of(first)), first, stop)

    def _gathered(self, first: int, stop: int) -> np.ndarray:
        paths = [self._path("repeats", part) for part in range(self.cut.num_ranges)]
        found = np.concatenate([_between(path, first, stop) for path in paths])
        return self.reduce(np.sort(found) if found.ndim == 1 else in_order([found]))

    def _path(self, kind: str, index: int) -> Path:
        return self.folder / f"{self.prefix}{kind}-{index:05d}.npy"


def places(task: int, numbers: np.ndarray) -> np.ndarray:
    """Places of documents, uint64 [N], by their numbers in a task."""
    return numbers.astype(np.uint64) | np.uint64(task) << _PLACE


def numbers_of(some_places: np.ndarray) -> np.ndarray:
    """Numbers that documents have in their tasks, uint64 [N], by their places."""
    return some_places & _NUMBER


def first_of_keys(rows: np.ndarray, limit: int) -> np.ndarray:
    """The rows of a sorted table, uint64 [N, C], without those of a key that come after its first `limit`."""
    before, _ = place_among_equals(rows[:, 0])
    return rows[before < limit] if len(rows) > limit else rows


def place_among_equals(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many equal keys come before each of sorted ones, and where the first of them is, int64 [N]."""
    here = np.arange(len(keys))
    is_first = np.concatenate([np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1]])
    first = np.maximum.accumulate(np.where(is_first, here, 0))
    return here - first, first


def in_order(tables: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of all tables, uint64 [N, C], by their columns from the first to the last."""
    rows = np.concatenate(tables)
    return rows[np.lexsort(rows.T[::-1])]


def in_range(table: np.ndarray, index: int, num_ranges: int) -> np.ndarray:
    """Rows of a sorted table whose first column is in a range, of as many equally wide ones."""
    start, stop = range_borders(table[:, 0], index, num_ranges)
    return np.array(table[start:stop])


def range_bounds(index: int, num_ranges: int) -> tuple[int, int]:
    """The least key of a range, and that of the next one."""
    return 2**64 * index // num_ranges, 2**64 * (index + 1) // num_ranges


def range_borders(keys: np.ndarray, index: int, num_ranges: int) -> tuple[int, int]:
    """Where the keys of a range begin and end among sorted ones, uint64 [N]."""
    lowest, highest = range_bounds(index, num_ranges)
    start = np.searchsorted(keys, np.uint64(lowest))
    return int(start), int(np.searchsorted(keys, np.uint64(highest)) if highest < 2**64 else len(keys))


def _between(path: Path, first: int, stop: int) -> np.ndarray:
    """The rows of a sorted file whose places lie in tasks first ... stop - 1."""
    rows = np.load(path, mmap_mode="r")
    column = rows if rows.ndim == 1 else rows[:, 0]
    begin, end = np.searchsorted(column, np.array([first << 32, stop << 32], np.uint64))
    return np.array(rows[begin:end])


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array so that it is there whole or not at all."""
    with written_aside(path) as file:
        np.save(file, array)
