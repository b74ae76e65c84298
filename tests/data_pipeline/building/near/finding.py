"""Finds near copies in a process of the test's own, by the very passes of a build and without Ray."""

import functools
import itertools
import re

from data_pipeline.building.passes import find_copies
from data_pipeline.building.source_files import list_files
from data_pipeline.building.sources import group_tasks, plan_units
from data_pipeline.building.tasks import Job, remaining_texts
from data_pipeline.config import DataConfig, SourceConfig, TokenizerConfig
from tests.data_pipeline.building.builds import write_json_lines


def job_of(folder, sources, deduplicate, shard_megabytes=0.02):
    """A build of lists of texts, and its tasks."""
    paths = [write_json_lines(folder / f"source-{number}.jsonl", texts) for number, texts in enumerate(sources)]
    config = DataConfig(
        path=str(folder / "data"),
        sources=[SourceConfig(path=str(path)) for path in paths],
        deduplicate=deduplicate,
    )
    size = round(shard_megabytes * 1e6)
    tasks = group_tasks(plan_units(list_files(config.sources), config.sources, size), size)
    job = Job(config, TokenizerConfig(path="unused"), "", "", len(tasks))
    job.work.mkdir(parents=True, exist_ok=True)
    return job, tasks


def in_process(order=lambda indices: indices, ran=None):
    """Runs the tasks of each pass in this process, in any order."""

    def run(stage, task, job, tasks):
        results = {}
        for index in order(list(range(len(tasks)))):
            results[index] = task(job, index, tasks[index])
            if ran is not None:
                ran(stage, index)
        return [results[index] for index in range(len(tasks))]

    return run


def left_of(job, tasks):
    """The texts that are left in each task."""
    return [
        [text for _, batch in remaining_texts(job, index, units) for text in batch.texts]
        for index, units in enumerate(tasks)
    ]


def deduplicated(folder, sources, deduplicate="near", **options):
    """The texts that stay, in order, and the job that says so."""
    job, tasks = job_of(folder, sources, deduplicate, **options)
    job = find_copies(job, tasks, in_process())
    return list(itertools.chain(*left_of(job, tasks))), job


def similarity(one, other):
    """Shared runs of five words over all of either (Jaccard), computed the plain way; each ideograph is a word."""
    first, second = plain_shingles(one), plain_shingles(other)
    return len(first & second) / len(first | second)


@functools.lru_cache(maxsize=4096)
def plain_shingles(text):
    """Runs of five words; a shorter text is one."""
    words = re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", text.lower())
    return {tuple(words[start : start + 5]) for start in range(max(len(words) - 4, 1))} if words else set()
