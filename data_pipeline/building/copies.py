"""Which documents of a build are copies of earlier ones: tables of hashes, sorted and cut on disk.

    hashes-00000.npy      of each task: rows of (hash high, hash low, place), uint64 [N, 3], sorted
      -> bundle-00000.npy     of many tasks together, where there are many
      -> repeats-00000.npy    places of the copies among the hashes of one range, uint64 [N], sorted
      -> returned-00000.npy   the same of all ranges, for the tasks of one bundle

A place is task << 32 | number of the document in the task, so equal hashes lie in the order of the sources. If every
range looked into the file of every task, T tasks and R ranges would open T x R files, tens of millions for 10 TB. With
bundles of sqrt(T) tasks they open some T + R sqrt(T), on the way there and on the way back.

    keys-00000.npy        the hashes of one range without copies, uint64 [N, 2], sorted: 16 bytes for each document

A finished dataset keeps these, so that documents of sources that are added later are compared with them.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.files import written_aside

FEW_TASKS = 64
"""Up to so many are not bundled: two passes more would cost more than the files that they save."""
RANGE_DOCUMENTS = 2_000_000
"""Hashes that are sorted at once (about 200 MB of memory)."""
_PLACE = np.uint64(32)


@dataclasses.dataclass(frozen=True)
class Copies:
    """The tables of one build; what is there already is not made again."""

    folder: Path
    """Where they lie."""
    num_tasks: int
    """Tasks whose documents are compared."""
    num_ranges: int = 1
    """Ranges of hashes that copies are looked for in, one at a time."""
    bundle_size: int = 1
    """Tasks that share a file; 1 where nothing is bundled."""
    first_task: int = 0
    """Number of the first of these tasks; those before it are of a dataset that they add to."""
    known: tuple[Path, ...] = ()
    """The keys of that dataset, range by range."""

    @property
    def num_bundles(self) -> int:
        """Files that tasks share; 0 where nothing is bundled."""
        return 0 if self.bundle_size == 1 else -(-self.num_tasks // self.bundle_size)

    def num_hashed(self, task: int) -> int | None:
        """Documents of a task that has been hashed, None of another."""
        path = self._path("hashes", task)
        return len(np.load(path, mmap_mode="r")) if path.exists() else None

    def save_hashes(self, task: int, keys: np.ndarray) -> None:
        """Takes the hashes of the documents of a task, uint64 [2, N], in their order."""
        places = np.arange(keys.shape[1], dtype=np.uint64) | np.uint64(task) << _PLACE
        _save(self._path("hashes", task), _sorted([np.vstack([keys, places]).T]))

    def bundle(self, index: int) -> None:
        """Makes one sorted table of those of a bundle's tasks."""
        path = self._path("bundle", index)
        if path.exists():
            return
        tables = [np.load(self._path("hashes", task), mmap_mode="r") for task in self._tasks(index)]
        size = sum(map(len, tables))
        num_parts = max(-(-size // RANGE_DOCUMENTS), 1)
        header = {"descr": "<u8", "fortran_order": False, "shape": (size, 3)}
        with written_aside(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in range(num_parts):
                file.write(_sorted([_range_of(table, part, num_parts) for table in tables]).astype("<u8").tobytes())

    def find(self, index: int) -> None:
        """Looks for copies in a range of hashes, and keeps its keys."""
        path, keys = self._path("repeats", index), self.keys_path(index)
        if path.exists() and keys.exists():
            return
        sources = [self._path("bundle", bundle) for bundle in range(self.num_bundles)]
        sources = sources or [self._path("hashes", task) for task in self._all_tasks()]
        tables = [_range_of(np.load(source, mmap_mode="r"), index, self.num_ranges) for source in sources]
        rows = _sorted([*known_rows(self.known, index, self.num_ranges), *tables])
        repeats = _repeats(rows)
        _save(keys, rows[~repeats, :2].astype("<u8"))
        _save(path, np.sort(rows[repeats, 2]))

    def keys_path(self, index: int) -> Path:
        """Where the keys of a range are."""
        return self._path("keys", index)

    def hand_back(self, index: int) -> None:
        """Gathers what all ranges found for the tasks of a bundle."""
        path = self._path("returned", index)
        if not path.exists():
            tasks = self._tasks(index)
            _save(path, self._repeats_between(tasks.start, tasks.stop))

    def of(self, task: int) -> np.ndarray:
        """Numbers of the documents of a task that repeat earlier ones, uint64 [N]."""
        if self.num_bundles:
            found = _places_between(
                self._path("returned", (task - self.first_task) // self.bundle_size), task, task + 1
            )
        else:
            found = self._repeats_between(task, task + 1)
        return found & np.uint64(2**32 - 1)

    def _repeats_between(self, first: int, stop: int) -> np.ndarray:
        paths = [self._path("repeats", part) for part in range(self.num_ranges)]
        return np.sort(np.concatenate([_places_between(path, first, stop) for path in paths]))

    def _tasks(self, bundle: int) -> range:
        return self._all_tasks()[bundle * self.bundle_size : (bundle + 1) * self.bundle_size]

    def _all_tasks(self) -> range:
        return range(self.first_task, self.first_task + self.num_tasks)

    def _path(self, kind: str, index: int) -> Path:
        return self.folder / f"{kind}-{index:05d}.npy"


def cut(num_tasks: int, num_documents: int) -> tuple[int, int]:
    """How many ranges there are, and how many tasks share a file."""
    bundle_size = 1 if num_tasks <= FEW_TASKS else math.isqrt(num_tasks - 1) + 1
    return max(-(-num_documents // RANGE_DOCUMENTS), 1), bundle_size


def known_rows(paths: Sequence[Path], index: int, num_ranges: int) -> Iterator[np.ndarray]:
    """Rows of the keys in a range, in place 0 before all tasks; only files that hold some of it are opened."""
    lowest, highest = _bounds(index, num_ranges)
    first, last = (bound * len(paths) >> 64 for bound in (lowest, highest))
    for path in paths[first : last + 1]:
        found = _range_of(np.load(path, mmap_mode="r"), index, num_ranges)
        yield np.column_stack([found, np.zeros(len(found), np.uint64)])


def _repeats(rows: np.ndarray) -> np.ndarray:
    """Which of sorted rows, uint64 [M, 3], have a hash that an earlier row has too, bool [M]."""
    return np.concatenate([np.zeros(min(len(rows), 1), bool), (rows[1:, :2] == rows[:-1, :2]).all(axis=1)])


def _sorted(tables: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of all tables, uint64 [N, 3], by hash, equal ones by place."""
    rows = np.concatenate([np.zeros((0, 3), np.uint64), *tables])
    return rows[np.lexsort(rows.T[::-1])]


def _range_of(table: np.ndarray, index: int, num_ranges: int) -> np.ndarray:
    """Rows of a sorted table whose hash is in a range, of as many equally wide ones."""
    lowest, highest = _bounds(index, num_ranges)
    start = np.searchsorted(table[:, 0], np.uint64(lowest))
    stop = np.searchsorted(table[:, 0], np.uint64(highest)) if highest < 2**64 else len(table)
    return np.array(table[start:stop])


def _bounds(index: int, num_ranges: int) -> tuple[int, int]:
    """The first hash of a range and the first after it."""
    lowest, highest = (2**64 * part // num_ranges for part in (index, index + 1))
    return lowest, highest


def _places_between(path: Path, first: int, stop: int) -> np.ndarray:
    """The places of a sorted file that lie in tasks first ... stop - 1."""
    places = np.load(path, mmap_mode="r")
    begin, end = np.searchsorted(places, np.array([first << 32, stop << 32], np.uint64))
    return np.array(places[begin:end])


def _save(path: Path, array: np.ndarray) -> None:
    with written_aside(path) as file:
        np.save(file, array)
