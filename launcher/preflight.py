"""What would fail in the queue an hour later, looked at before a job is submitted."""

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from common.mistakes import Mistake
from common.mounts import file_system_of
from data_pipeline.opening import open_dataset
from data_pipeline.reading.corpus import Corpus
from launcher.job_script import Job
from launcher.profiles import ClusterProfile
from launcher.time_limits import seconds_of
from training.config import RunConfig
from training.deepspeed_config import check_deepspeed_keys

LOCAL_FILE_SYSTEMS = {"tmpfs", "ramfs", "devtmpfs"}
"""Kinds of file systems that no two nodes share, and that forget what is in them."""


def faults(config: RunConfig, job: Job, profile: ClusterProfile, *, data_follows: bool) -> list[str]:
    """What is wrong with submitting this, one sentence each; empty when nothing is.

    `data_follows`: the dataset is built by a job before.
    """
    found = [*_job_faults(config, job, profile), *_path_faults(config, job, profile)]
    if not data_follows and job.stage == "train":
        found += _data_faults(config, job.nodes * profile.num_ranks)
    return found


def lack_of_room(config: RunConfig, nodes: int, profile: ClusterProfile) -> str | None:
    """A sentence when the plan says that a run does not fit a cluster's GPUs; None where nobody says what they are."""
    if profile.gpu is None or importlib.util.find_spec("torch") is None:
        return None
    from training.plan.machines import machine
    from training.plan.plan import plan
    from training.plan.speed import EFFICIENCY

    kind = machine(profile.gpu)
    found = plan(config, nodes * profile.num_ranks, kind, None, EFFICIENCY)
    if found.fits:
        return None
    return (
        f"the plan says that it will not fit: {found.memory.needed / 1e9:.0f} of {kind.memory_gb:g} GB a GPU; see what "
        f"would: shardline plan CONFIG --gpu {profile.gpu} --gpus {found.num_gpus} --search"
    )


def usable_nodes(config: RunConfig, profile: ClusterProfile, fewest: int, most: int) -> list[int]:
    """Numbers of nodes from `fewest` to `most` whose ranks can share the run's work."""
    return [number for number in range(fewest, most + 1) if not _why_not(config, number, profile)]


def range_faults(config: RunConfig, fewest: int, most: int, profile: ClusterProfile) -> Iterator[str]:
    """What is wrong with wanting `most` nodes and going on with as few as `fewest`, where `most` alone would do."""
    if fewest > most:
        yield f"--min-nodes {fewest}: is more than --nodes {most}; it is the fewest that the run may go on with"
    elif fewest < most and not _why_not(config, most, profile) and not usable_nodes(config, profile, fewest, most - 1):
        why = _why_not(config, most - 1, profile)
        fewer = [number for number in range(fewest - 1, 0, -1) if not _why_not(config, number, profile)]
        hint = f"use --min-nodes {fewer[0]}" if fewer else "leave it out"
        yield f"--min-nodes {fewest}: no number of nodes from there to {most - 1} can train this run; {hint} ({why})"


def _why_not(config: RunConfig, nodes: int, profile: ClusterProfile) -> str:
    """Why so many nodes cannot train a run; empty when they can."""
    if fault := next(_shape_faults(config, nodes, profile), ""):
        return fault
    try:
        check_deepspeed_keys(config, nodes * profile.num_ranks)
    except Mistake as mistake:
        return str(mistake)
    return ""


def _shape_faults(config: RunConfig, nodes: int, profile: ClusterProfile) -> Iterator[str]:
    training, tensor, ranks = config.training, config.parallel.tensor, nodes * profile.num_ranks
    sharing, words = config.parallel.num_sharing, config.parallel.sharing_in_words
    per_step = max(ranks // sharing, 1) * training.micro_batch_size
    if profile.num_ranks % tensor:
        yield (
            f"parallel.tensor: the {tensor} ranks that share a layer would not all be on one node, which has "
            f"{profile.num_ranks} ranks, and the network between nodes is too slow for them; use a divisor of "
            f"{profile.num_ranks}"
        )
    elif ranks % sharing:
        yield f"parallel: nodes x ranks per node = {ranks} is no multiple of {words}; change --nodes or one of these"
    elif training.global_batch_size % per_step:
        shared = f" / {words}" if sharing > 1 else ""
        yield (
            f"training.global_batch_size: {training.global_batch_size} is not a multiple of nodes x ranks per node x "
            f"micro_batch_size = {nodes} x {profile.num_ranks} x {training.micro_batch_size}{shared}; "
            f"use a multiple of {per_step}"
        )


def _job_faults(config: RunConfig, job: Job, profile: ClusterProfile) -> Iterator[str]:
    yield from _shape_faults(config, job.nodes, profile)
    seconds = seconds_of(job.time)
    if seconds is not None and seconds <= profile.warning_seconds:
        yield (
            f"--time {job.time}: is not longer than the profile's warning_seconds {profile.warning_seconds}, "
            "so the run would be told to save before it begins; ask for more time"
        )
    if job.nodes > 1 and "|" in re.sub(r"\[[^]]*\]", "", profile.constraint or ""):
        yield (
            f"constraint: {profile.constraint} may give one job nodes of both kinds, and the slower ones set the pace; "
            f"bracket it, as [{profile.constraint}], so that all nodes are of one kind"
        )
    if config.checkpoint.interval_steps is None:
        yield (
            "checkpoint.interval_steps: is empty, so a lost node would cost the whole run; "
            "set how many steps may be lost, as --set checkpoint.interval_steps=1000"
        )


def _path_faults(config: RunConfig, job: Job, profile: ClusterProfile) -> Iterator[str]:
    paths = {"run folder": job.run_dir, "data.path": config.data.path, "tokenizer.path": config.tokenizer.path}
    for number, source in enumerate(config.data.mix.sources if config.data.mix else ()):
        paths |= {f"data.mix.sources[{number}].path": source.path} if source.path else {}
    if profile.stage_in:
        paths |= {"stage_in.archive": profile.stage_in.archive}
        if not Path(profile.stage_in.archive).is_file():
            yield f"stage_in.archive: {profile.stage_in.archive} is not a file; make it with tar, or mend the path"
    elif profile.container is None:
        # the program itself may be a link out of the shared folder, to a Python that every node has
        paths |= {"Python": str(Path(job.python).parent), "shardline": str(Path(__file__).resolve().parent.parent)}
        if not (os.access(job.python, os.X_OK) or shutil.which(job.python)):
            yield f"python: {job.python} is not a program here; set `python` in the profile"
    shared = [os.path.realpath(path) for path in profile.shared_paths]
    for what, path in paths.items():
        real = os.path.realpath(path)
        if not any(os.path.commonpath([real, root]) == root for root in shared):
            yield f"{what}: {real} is not in {' or '.join(shared)}, which all nodes share by the profile; move it there"
        elif (kind := file_system_of(real)) in LOCAL_FILE_SYSTEMS:
            yield f"{what}: {real} is on {kind}, the memory of this machine, which no other node sees; move it"


def _data_faults(config: RunConfig, world_size: int) -> Iterator[str]:
    try:
        Corpus.read(config.data, config.tokenizer, open_dataset)
    except ValueError as error:
        yield f"{error}, or let --stage data build it on the cluster"
        return
    if importlib.util.find_spec("torch") is None:  # a login node may do without
        return
    from training.setup import check  # imports DeepSpeed: seconds, and some of what it says of itself

    try:
        check(config, world_size)
    except ValueError as error:
        yield str(error)
