"""`shardline submit`: checks, renders, submits and records the jobs of a run.

config + profile -> checks -> runs/<name>/config.yaml, slurm/train.sbatch -> sbatch [x chain] -> slurm/jobs.jsonl
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from common.files import naming, write_whole
from common.json_lines import append_line
from common.mistakes import Mistake
from launcher import nodes, practice, preflight
from launcher.job_script import Job, excluded_by, render
from launcher.profiles import ClusterProfile, load_profile
from launcher.run_folder import JOBS, RunFolder, keep_config
from launcher.slurm_commands import Slurm
from launcher.time_limits import seconds_of, time_limit
from training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asked for."""

    cluster: str
    """Name or path of the profile."""
    nodes: int
    """Number of nodes."""
    time: str | None = None
    """Time limit in one of launcher.time_limits' forms; None takes the profile's."""
    chain: int = 1
    """Number of training jobs, each beginning when the one before has ended."""
    after: int | None = None
    """Id of a job to wait for."""
    stage: str = "train"
    """`data` builds the dataset first."""
    only_data: bool = False
    """With stage data: build it and train nothing."""
    verify: bool = False
    """Prove at each start of a training job, on its ranks, that they train as a plain loop does."""
    min_nodes: int | None = None
    """Fewest nodes that a start goes on with when it can't get all; None wants all."""
    wait: str = "5m"
    """How long a start with fewer waits for more, in one of launcher.time_limits' forms."""
    singleton: bool = False
    """Jobs wait for all others of the run, those in the queue among them, by their name alone."""
    include_lemons: bool = False
    """Take nodes too that failed too often."""


@dataclasses.dataclass(frozen=True)
class Submission:
    """What was submitted."""

    run_dir: Path
    jobs: list[dict[str, Any]]
    """Lines of slurm/jobs.jsonl, in the order they will run."""
    notices: list[str]
    """Sentences on nodes that the jobs do without."""


def scripts(config: RunConfig, request: Request) -> dict[str, str]:
    """The job files by stage, in the order they would run."""
    profile = load_profile(request.cluster)
    return {job.stage: render(job, profile) for job in _jobs(config, request, profile)}


def problems(config: RunConfig, request: Request) -> list[str]:
    """What would fail in the queue later, one sentence each, as far as it can be told without Slurm."""
    profile = load_profile(request.cluster)
    jobs = _jobs(config, request, profile)
    found = [fault for job in jobs for fault in preflight.faults(config, job, profile, data_follows=len(jobs) > 1)]
    if request.min_nodes is not None:
        found += preflight.range_faults(config, request.min_nodes, request.nodes, profile)
    return found


def doubt(config: RunConfig, request: Request) -> str | None:
    """What a run that can be submitted will probably fail of, where it can be told; None else."""
    profile = load_profile(request.cluster)
    fewest = [job.fewest for job in _jobs(config, request, profile) if job.stage == "train"]
    return preflight.lack_of_room(config, fewest[0], profile) if fewest else None


def submit(config: RunConfig, request: Request) -> Submission:
    """Submits the jobs of a run and records them in its folder.

    Raises ValueError with the first thing that would fail, before anything is written; a run that is in the queue
    already is refused.
    """
    profile = load_profile(request.cluster)
    jobs = _jobs(config, request, profile)
    for fault in problems(config, request):
        raise Mistake(fault)
    commands = practice.commands() if profile.practice else None
    slurm = Slurm(commands)
    folder = config.run_dir / "slurm"
    queued = _queued(slurm, config, request)
    texts: dict[str, str] = {job.stage: render(job, profile) for job in jobs}
    for stage, text in texts.items():
        if fault := slurm.fault(text):
            raise Mistake(f"--cluster {request.cluster}: sbatch would refuse the job file of stage {stage}: {fault}")
    without, notices = _without_lemons(slurm, request, profile, jobs, texts)
    with naming(folder):
        scripts = _write(config, folder, texts)
    append_line(config.run_dir / "events.jsonl", {"time": time.time(), "event": "submit", "cluster": request.cluster})
    records: list[dict[str, Any]] = []
    for job in jobs:
        for position in range(request.chain if job.stage == "train" else 1):
            job_id = slurm.submit(scripts[job.stage], [*_dependency(records, job, request), *without])
            record: dict[str, Any] = {"time": time.time(), "job": job_id, "stage": job.stage, "position": position + 1}
            record |= {"cluster": request.cluster, "nodes": job.nodes, "limit": seconds_of(job.time)}
            record |= {"min_nodes": job.fewest, "singleton": job.singleton}
            record |= {"log": str(config.run_dir / "slurm" / f"{job.stage}-{job_id}.log")}
            record |= {"commands": str(commands) if commands else None}
            append_line(config.run_dir / JOBS, record)
            records.append(record)
    chain = [record["job"] for record in records if record["stage"] == "train"]
    write_whole(folder / "chain", "".join(f"{job_id}\n" for job_id in [*queued, *chain]).encode())
    return Submission(config.run_dir, records, notices)


def _jobs(config: RunConfig, request: Request, profile: ClusterProfile) -> list[Job]:
    common: dict[str, Any] = {
        "run_dir": str(config.run_dir.absolute()),
        "workdir": str(Path.cwd()),
        "python": profile.python or sys.executable,
        "nodes": request.nodes,
        "time": time_limit(request.time, "--time") if request.time is not None else profile.time,
        "usable": tuple(_usable(config, request, profile)),
        "nodes_file": str(nodes.nodes_file(request.cluster, profile).absolute()),
    }
    if (wait := seconds_of(time_limit(request.wait, "--wait-for-nodes"))) is None:
        raise Mistake("--wait-for-nodes: nodes that wait without end are lost too; say how long, as 10m")
    own: dict[str, Any] = {"steps": config.training.steps, "verify": request.verify, "singleton": request.singleton}
    training = [Job(**common, **own, wait_seconds=wait)] if not request.only_data else []
    return [*([Job(**common, stage="data")] if request.stage == "data" else []), *training]


def _usable(config: RunConfig, request: Request, profile: ClusterProfile) -> list[int]:
    if request.min_nodes is None or request.min_nodes >= request.nodes:
        return []
    return [*preflight.usable_nodes(config, profile, request.min_nodes, request.nodes - 1), request.nodes]


def _dependency(before: list[dict[str, Any]], job: Job, request: Request) -> list[str]:
    """Options that make a job wait: for a dataset's success, for the end of a training or of all of its name."""
    kinds, more = ["singleton"] if job.singleton else [], []
    if before and before[-1]["stage"] == "data":
        kinds, more = [*kinds, f"afterok:{before[-1]['job']}"], ["--kill-on-invalid-dep=yes"]
    elif before and not job.singleton:
        kinds, more = [f"afterany:{before[-1]['job']}"], ["--kill-on-invalid-dep=yes"]
    elif not before and request.after is not None:
        kinds = [*kinds, f"afterany:{request.after}"]
    return [f"--dependency={','.join(kinds)}", *more] if kinds else []


def _without_lemons(
    slurm: Slurm, request: Request, profile: ClusterProfile, jobs: list[Job], texts: dict[str, str]
) -> tuple[list[str], list[str]]:
    """Options by which jobs do without nodes that failed too often, and sentences on that."""
    file = nodes.nodes_file(request.cluster, profile)
    known, notices = nodes.read_nodes(file, profile.lemons)
    if request.include_lemons or not any(node.until for node in known):
        return [], notices
    choice = nodes.choose(known, slurm.nodes(profile.partition), request.nodes)
    names = sorted(node.name for node in choice.left_out)
    options = [f"--exclude={','.join([*excluded_by(profile), *names])}"] if names else []
    if options and any(slurm.fault(text, options) for text in texts.values()):
        choice, options = nodes.Choice([], choice.left_out + choice.spared), []
    return options, [*notices, *nodes.sentences(choice, file)]


def _write(config: RunConfig, folder: Path, texts: dict[str, str]) -> dict[str, Path]:
    """Puts the run's config and job files in place; a cancelled run may be submitted again."""
    folder.mkdir(parents=True, exist_ok=True)
    (config.run_dir / "logs").mkdir(exist_ok=True)
    keep_config(config)
    (folder / "cancel").unlink(missing_ok=True)
    with (folder / "attempts").open("a") as attempts:
        attempts.write("submit - -\n")
    paths = {stage: folder / f"{stage}.sbatch" for stage in texts}
    for stage, text in texts.items():
        write_whole(paths[stage], text.encode(errors="surrogateescape"))
    return paths


def _queued(slurm: Slurm, config: RunConfig, request: Request) -> list[int]:
    """Jobs of the run that wait or run already, which only those that wait for all of their name may be added to."""
    run_dir, records = config.run_dir, RunFolder.read(config.run_dir).jobs[-64:]
    alive = [job for job in slurm.jobs([record["job"] for record in records]).values() if not job.is_over]
    waits_for_all = {record["job"] for record in records if record.get("singleton")}
    added_to = request.singleton and request.stage == "train" and all(job.id in waits_for_all for job in alive)
    if alive and not added_to:
        raise Mistake(
            f"{run_dir}: job {alive[0].id} of this run is {alive[0].state.lower()} already; "
            f"look with 'shardline status {run_dir}' or end it with 'shardline cancel {run_dir}'"
        )
    if alive and (different := changes(config)):
        raise Mistake(f"{run_dir}: job {alive[0].id} of this run has another config ({different[0]}); end it first")
    return sorted(job.id for job in alive)


def changes(config: RunConfig) -> list[str]:
    """Keys of the config that a run had otherwise when it was last started; none for a new run."""
    from launcher.local import config_changes

    before = RunFolder.read(config.run_dir).config
    return config_changes(before, config) if before else []
