"""The passes of a build over its tasks, in order, without a word of what runs them.

    hash -> bundle -> find -> hand back                       exact copies of documents
    sketch -> bundle -> pair -> hand back                     documents that share a band ...
      -> gather -> bundle -> compare -> hand back -> settle   ... are compared; only then is anything a near copy
    hash lines -> bundle -> find -> hand back                 repeated lines
    tokenize

How the tables of a pass are cut depends on what the one before has counted, so on the sources alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from data_pipeline.building.copies import Copies
from data_pipeline.building.near.near_copies import NearCopies
from data_pipeline.building.near.report import Cluster, merged, save_clusters
from data_pipeline.building.near.sets import COMPARED_BYTES, SHINGLE_BYTES
from data_pipeline.building.near.settling import MOST_ROUNDS
from data_pipeline.building.near.tasks import clusters_task, gather_task, settle_task, sketch_task
from data_pipeline.building.sources import Unit
from data_pipeline.building.tables import cut
from data_pipeline.building.tasks import Job, find_task, hash_task, line_task, write_json

Task = Callable[[Job, int, Sequence[Unit]], dict[str, Any]]
Run = Callable[[str, Task, Job, Sequence[Sequence[Unit]]], list[dict[str, Any]]]
"""Runs a task for each entry of a list, having said in words what it does; returns the results in order."""


def find_copies(job: Job, tasks: Sequence[Sequence[Unit]], run: Run, num_known: int = 0) -> Job:
    """The job with all that is to be left out of the dataset, as far as its settings ask for that.

    num_known documents are in the dataset that it adds to.
    """
    if job.data.deduplicate.documents != "none":
        job = _find_exact(job, tasks, run, num_known)
    if job.data.deduplicate.documents == "near":
        job = _find_near(job, tasks, run)
    if job.data.deduplicate.lines == "exact":
        job = _find_lines(job, tasks, run)
    return job


def _find_exact(job: Job, tasks: Sequence[Sequence[Unit]], run: Run, num_known: int) -> Job:
    hashed = run("hashing documents", hash_task, job, tasks)
    num_hashes = num_known + sum(result["documents"] for result in hashed)
    copies = dataclasses.replace(job.hashes, cut=cut(len(tasks), num_hashes, first_task=job.first_task))
    digests = _find_among(copies, "hashes", "copies", job, run)
    if copies.keeps_keys:
        write_json(job.keys_file, digests)
    return dataclasses.replace(job, copies=copies)


def _find_lines(job: Job, tasks: Sequence[Sequence[Unit]], run: Run) -> Job:
    hashed = run("hashing lines", line_task, job, tasks)
    lines = dataclasses.replace(job.line_hashes, cut=cut(len(tasks), sum(result["lines"] for result in hashed)))
    _find_among(lines, "lines", "repeated lines", job, run)
    return dataclasses.replace(job, lines=lines)


def _find_among(copies: Copies, hashed: str, found: str, job: Job, run: Run) -> list[str | None]:
    """Digests of what is kept of each range; None where nothing is."""
    _steps(f"bundling {hashed}", copies.tables.bundle, copies.cut.num_bundles, job, run)
    results = run(f"finding {found}", partial(find_task, copies=copies), job, [[]] * copies.cut.num_ranges)
    _steps(f"handing {found} back", copies.tables.hand_back, copies.cut.num_bundles, job, run)
    return [result["keys"] for result in results]


def _find_near(job: Job, tasks: Sequence[Sequence[Unit]], run: Run) -> Job:
    near = NearCopies(job.work, job.data.deduplicate.similarity, cut(len(tasks), 0))
    sketched = run("sketching documents", partial(sketch_task, near=near), job, tasks)
    near = dataclasses.replace(near, bands_cut=cut(len(tasks), sum(result["rows"] for result in sketched)))
    num_bundles = near.bands_cut.num_bundles
    _steps("bundling sketches", near.bands.bundle, num_bundles, job, run)
    _steps("pairing documents", near.pair, near.bands_cut.num_ranges, job, run)
    _steps("handing pairs back", near.bands.hand_back, num_bundles, job, run)
    gathered = run("gathering pairs", partial(gather_task, near=near), job, tasks)
    num_bytes = SHINGLE_BYTES * sum(result["shingles"] for result in gathered)
    near = dataclasses.replace(near, num_comparisons=cut(len(tasks), num_bytes, COMPARED_BYTES).num_ranges)
    _steps("bundling pairs", near.sets.bundle, num_bundles, job, run)
    _steps("comparing documents", near.compare, near.num_comparisons, job, run)
    _steps("handing near copies back", near.verified.hand_back, num_bundles, job, run)
    return dataclasses.replace(job, near=_settle(near, job, run))


def _settle(near: NearCopies, job: Job, run: Run) -> NearCopies:
    parts: list[list[Unit]] = [[]] * near.settled.num_parts
    for round_number in range(MOST_ROUNDS):
        near = dataclasses.replace(near, last_round=round_number)
        settled = run("deciding what stays", partial(settle_task, near=near), job, parts)
        if not any(result["undecided"] for result in settled):
            break
    found = run("looking for large clusters", partial(clusters_task, near=near), job, parts)
    save_clusters(job.work, merged(Cluster(*values) for result in found for values in result["clusters"]))
    return near


def _steps(stage: str, step: Callable[[int], None], count: int, job: Job, run: Run) -> None:
    """Runs a pass that needs no documents; it has no parts where nothing is bundled."""
    if count:
        run(stage, partial(_step, step=step), job, [[]] * count)


def _step(job: Job, index: int, units: Sequence[Unit], step: Callable[[int], None]) -> dict[str, Any]:
    step(index)
    return {}
