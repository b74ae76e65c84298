"""What people get to see of near copies: how many each source lost, and the largest clusters with their beginnings.

removed documents of a bundle -> largest_clusters -> merged -> near-clusters.json, which documents are to be shown
facts of all tasks            -> near_copies.jsonl, one line for each cluster      counts of sources -> alarms
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_whole, written_aside
from data_pipeline.config import DataConfig
from data_pipeline.manifest import SourceCounts

FILE_NAME = "near_copies.jsonl"
CLUSTERS_NAME = "near-clusters.json"
"""In the folder that only builds write to."""
MOST_CLUSTERS, MOST_SAMPLES = 50, 3
"""Clusters that are shown, and documents of each beside the one that stays."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A document that stays and those that it replaces."""

    kept: int
    """Its place."""
    num_removed: int
    """How many it replaces."""
    samples: list[tuple[int, float]]
    """Places of the first of them, and how similar they are."""


def largest_clusters(removed: np.ndarray) -> list[Cluster]:
    """The largest ones among removed documents, rows (document, kept one, bits of the similarity), uint64 [N, 3]."""
    removed = removed[np.lexsort([removed[:, 0], removed[:, 1]])]
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(removed), 1), bool), np.diff(removed[:, 1]) > 0]))
    sizes = np.diff(np.append(starts, len(removed)))
    clusters = []
    for index in np.argsort(-sizes, kind="stable")[:MOST_CLUSTERS].tolist():
        rows = removed[starts[index] :][: min(MOST_SAMPLES, sizes[index])]
        samples = list(zip(rows[:, 0].tolist(), rows[:, 2].copy().view(np.float64).tolist(), strict=True))
        clusters.append(Cluster(int(rows[0, 1]), int(sizes[index]), samples))
    return clusters


def merged(clusters: Iterable[Cluster]) -> list[Cluster]:
    """The largest ones of all bundles; of one that has documents in many, the sizes are added where it is large."""
    together: dict[int, Cluster] = {}
    for one in clusters:
        other = together.get(one.kept, Cluster(one.kept, 0, []))
        samples = sorted([*other.samples, *one.samples])[:MOST_SAMPLES]
        together[one.kept] = Cluster(one.kept, other.num_removed + one.num_removed, samples)
    return sorted(together.values(), key=lambda one: (-one.num_removed, one.kept))[:MOST_CLUSTERS]


def save_clusters(work: Path, clusters: Sequence[Cluster]) -> None:
    """Says which clusters are to be shown."""
    write_whole(work / CLUSTERS_NAME, json.dumps([dataclasses.astuple(one) for one in clusters]).encode())


def read_clusters(work: Path) -> list[Cluster]:
    """The clusters that are to be shown."""
    found = json.loads((work / CLUSTERS_NAME).read_bytes())
    return [Cluster(kept, size, [(place, similar) for place, similar in samples]) for kept, size, samples in found]


def write_clusters(folder: Path, config: DataConfig, clusters: Sequence[Cluster], facts: Sequence[dict]) -> None:
    """Writes near_copies.jsonl from clusters and the facts of all tasks, which hold the beginnings of texts."""
    beginnings = {int(place): found for each in facts for place, found in each["beginnings"].items()}

    def shown(place: int) -> dict[str, Any]:
        source, beginning = beginnings[place]
        return {"source": source, "path": config.sources[source].path, "beginning": beginning}

    with written_aside(folder / FILE_NAME) as file:
        for one in clusters:
            removed = [{"similarity": round(similarity, 4), **shown(place)} for place, similarity in one.samples]
            record = {"num_removed": one.num_removed, "kept": shown(one.kept), "removed": removed}
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def alarms(config: DataConfig, sources: Sequence[SourceCounts]) -> list[str]:
    """A sentence for each source that lost more than `alarm_share` of its documents to near copies."""
    found = []
    for number, (source, counts) in enumerate(zip(config.sources, sources, strict=False)):
        removed = counts.counts.get("dropped_near_copy", 0)
        compared = removed + counts.counts.get("documents_kept", 0)
        if removed > config.deduplicate.alarm_share * compared:
            found.append(
                f"data.sources[{number}]: {removed:,} of the {compared:,} documents of '{source.path}' are near copies "
                f"of others and left out; look at {FILE_NAME} in {config.path}, and raise data.deduplicate.similarity "
                "where they are not"
            )
    return found
