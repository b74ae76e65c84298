"""Brings the shingle sets of documents that are to be compared to one place, and compares them.

    set-00000.bin          shingle sets of a task's candidates behind each other, uint32
    set-00000.npy          rows (key of better, better, document, offset, length), uint64 [N, 5], sorted: one for each
                           pair, and one where a document is the better one of others, which it is paired with itself
      -> set-bundle-00000.{bin,npy}   of many tasks together, the sets in the order of the rows
      -> groups of one range of keys: a better document's set, and those of all that it may replace, some at a time

As in `tables`, no range looks into the files of every task where these are many.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.files import written_aside
from data_pipeline.building import tables
from data_pipeline.building.near.shingles import splitmix
from data_pipeline.building.tables import Cut, in_order, in_range, save_array

COMPARED_BYTES = 64 << 20
"""Shingle sets of the documents of one range, about."""
AT_ONCE = 1 << 22
"""Shingles that are compared with a better document's at once."""
SHINGLE_BYTES = 4


@dataclasses.dataclass(frozen=True)
class ShingleSets:
    """The sets of one build; what is there already is not made again."""

    folder: Path
    """Where they lie."""
    cut: Cut
    """How they are cut."""

    def num_saved(self, task: int) -> int | None:
        """Shingles to be compared of a task that has saved its own, None of another."""
        path = self._path("set", task)
        return int(np.load(path)[:, 4].sum()) if path.exists() else None

    def save(self, task: int, sets: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
        """Takes pairs of a document with better ones, uint64 [P, 2], and its set, uint32 [S]."""
        rows, offset = [np.zeros((0, 5), np.uint64)], 0
        with written_aside(self._path("set", task).with_suffix(".bin")) as file:
            for pairs, hashes in sets:
                file.write(hashes.astype("<u4").tobytes())
                span = np.broadcast_to(np.array([offset, len(hashes)], np.uint64), (len(pairs), 2))
                rows.append(np.column_stack([splitmix(pairs[:, 1]), pairs[:, 1], pairs[:, 0], span]))
                offset += len(hashes)
        save_array(self._path("set", task), in_order(rows))

    def bundle(self, index: int) -> None:
        """Puts those of a bundle's tasks together."""
        path = self._path("set-bundle", index)
        if path.exists():
            return
        sources = [self._path("set", task) for task in self.cut.tasks(index)]
        num_parts = max(-(-sum(len(np.load(source, mmap_mode="r")) for source in sources) // tables.RANGE_ROWS), 1)
        written, offset = [], 0
        with written_aside(path.with_suffix(".bin")) as file:
            for part in range(num_parts):
                rows, opened = _rows_of(sources, part, num_parts)
                for source, start, length in rows[:, 3:].tolist():
                    file.write(opened[source][start : start + length].tobytes())
                rows[:, 4] = offset + np.cumsum(rows[:, 5]) - rows[:, 5]
                offset += int(rows[:, 5].sum())
                written.append(rows[:, [0, 1, 2, 4, 5]])
        save_array(path, np.concatenate(written))

    def groups(self, index: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, list[np.ndarray]]]:
        """Of a range of keys: a better document and its set, others and theirs, some at a time."""
        sources = [self._path("set-bundle", bundle) for bundle in range(self.cut.num_bundles)]
        sources = sources or [self._path("set", task) for task in range(self.cut.num_tasks)]
        rows, opened = _rows_of(sources, index, self.cut.num_ranges)
        for group in np.split(rows, np.flatnonzero(rows[1:, 1] != rows[:-1, 1]) + 1) if len(rows) else []:
            is_better = group[:, 2] == group[:, 1]
            better, others = group[is_better], group[~is_better]
            assert len(better) == 1, "a better document is in no table"
            parts = np.cumsum(others[:, 5]) // np.uint64(AT_ONCE)
            for part in np.split(others, np.flatnonzero(np.diff(parts)) + 1) if len(others) else []:
                yield int(better[0, 1]), _load(opened, better)[0], part[:, 2], _load(opened, part)

    def _path(self, kind: str, index: int) -> Path:
        return self.folder / f"{kind}-{index:05d}.npy"


def _rows_of(sources: Sequence[Path], part: int, num_parts: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows (key, better, document, number of the file, offset, length) of a range of keys, and the sets by file."""
    found = []
    for number, source in enumerate(sources):
        rows = in_range(np.load(source, mmap_mode="r"), part, num_parts)
        found.append(np.insert(rows, 3, number, axis=1))
    return in_order(found), [_opened(source.with_suffix(".bin")) for source in sources]


def _opened(path: Path) -> np.ndarray:
    return np.memmap(path, "<u4", "r") if path.stat().st_size else np.zeros(0, np.uint32)


def _load(opened: Sequence[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    return [np.array(opened[source][start : start + length]) for source, start, length in rows[:, 3:].tolist()]


def similarities(better: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Shared shingles over all shingles of either (Jaccard), float64 [N], of sets, ascending uint32, none empty."""
    lengths = np.array([len(other) for other in others])
    shingles = np.concatenate(others)
    found = better[np.minimum(np.searchsorted(better, shingles), len(better) - 1)] == shingles
    shared = np.add.reduceat(found, np.cumsum(lengths) - lengths, dtype=np.int64)
    return shared / (lengths + len(better) - shared)


def verified_pairs(sets: ShingleSets, index: int, similarity: float) -> np.ndarray:
    """Pairs of a range that are similar enough: rows (document, better one, bits of the similarity), uint64 [P, 3]."""
    found = [np.zeros((0, 3), np.uint64)]
    for better, its_set, documents, others in sets.groups(index):
        similar = similarities(its_set, others)
        rows = np.column_stack([documents, np.full(len(documents), better, np.uint64), similar.view(np.uint64)])
        found.append(rows[similar >= similarity])
    return in_order(found)
