"""The work of finding near copies that is done task by task, as in `building.tasks`, with the same result in any order.

    sketch_task   units -> keys of the bands of each document that is no copy
    gather_task   units -> shingle sets of those that are to be compared
    clusters_task decided documents -> the largest clusters of a bundle of tasks

What is done range by range or bundle by bundle in between needs no documents: see `near_copies`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipeline.building.clean import CleanBatch
from data_pipeline.building.near.near_copies import NearCopies
from data_pipeline.building.near.report import largest_clusters
from data_pipeline.building.near.shingles import shingle_sets, shingles
from data_pipeline.building.near.sketches import band_keys, bands_for
from data_pipeline.building.sources import Unit
from data_pipeline.building.tables import places
from data_pipeline.building.tasks import Job, remaining_texts


def sketch_task(job: Job, index: int, units: Sequence[Unit], near: NearCopies) -> dict[str, Any]:
    """Sketches the documents of a task."""
    num_rows = near.bands.num_saved(index)
    if num_rows is None:
        longest = job.data.deduplicate.keep == "longest"
        found = [
            _band_rows(index, numbers, batch, near, longest) for numbers, batch in remaining_texts(job, index, units)
        ]
        rows = np.concatenate([np.zeros((0, 3), np.uint64), *found])
        near.bands.save(index, rows)
        num_rows = len(rows)
    return {"rows": num_rows}


def _band_rows(task: int, numbers: np.ndarray, batch: CleanBatch, near: NearCopies, longest: bool) -> np.ndarray:
    """Rows (key of a band, rank, place) of some documents, uint64 [M, 3]; the least rank of a bucket is the best."""
    hashes, starts = shingles(batch.texts)
    has_shingles = np.diff(starts) > 0
    keys = band_keys(hashes, starts[np.append(has_shingles, True)], bands_for(near.similarity))
    ranks = np.invert(batch.sizes.astype(np.uint64)) if longest else np.zeros(len(batch.texts), np.uint64)
    facts = np.stack([ranks, places(task, numbers)], axis=1)[has_shingles]
    return np.column_stack([keys.reshape(-1), np.repeat(facts, keys.shape[1], axis=0)])


def gather_task(job: Job, index: int, units: Sequence[Unit], near: NearCopies) -> dict[str, Any]:
    """Shingles those documents of a task again that are to be compared."""
    num_shingles = near.sets.num_saved(index)
    if num_shingles is None:
        near.sets.save(index, _sets(job, index, units, near.pairs_of(index)))
        num_shingles = near.sets.num_saved(index)
    return {"shingles": num_shingles}


def _sets(job: Job, index: int, units: Sequence[Unit], pairs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of each document that is in any, uint64 [P, 2], and its shingle set."""
    for numbers, batch in remaining_texts(job, index, units) if len(pairs) else []:
        all_places = places(index, numbers)
        begin = np.searchsorted(pairs[:, 0], all_places)
        end = np.searchsorted(pairs[:, 0], all_places, "right")
        chosen = begin < end
        sets = shingle_sets(batch.only(chosen).texts)
        for start, stop, hashes in zip(begin[chosen].tolist(), end[chosen].tolist(), sets, strict=True):
            yield pairs[start:stop], hashes


def settle_task(job: Job, index: int, units: Sequence[Unit], near: NearCopies) -> dict[str, Any]:
    """Decides what can be decided of the documents of a bundle."""
    return {"undecided": near.settle(index)}


def clusters_task(job: Job, index: int, units: Sequence[Unit], near: NearCopies) -> dict[str, Any]:
    """The largest clusters of the documents of a bundle."""
    removed = near.settled.removed(near.last_round, index)
    return {"clusters": [dataclasses.astuple(cluster) for cluster in largest_clusters(removed)]}
