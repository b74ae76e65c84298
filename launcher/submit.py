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
from launcher import practice, preflight
from launcher.job_script import Job, render
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


@dataclasses.dataclass(frozen=True)
class Submission:
    """What was submitted."""

    run_dir: Path
    jobs: list[dict[str, Any]]
    """Lines of slurm/jobs.jsonl, in the order they will run."""


def scripts(config: RunConfig, request: Request) -> dict[str, str]:
    """The job files by stage, in the order they would run."""
    profile = load_profile(request.cluster)
    return {job.stage: render(job, profile) for job in _jobs(config, request, profile)}


def problems(config: RunConfig, request: Request) -> list[str]:
    """What would fail in the queue later, one sentence each, as far as it can be told without Slurm."""
    profile = load_profile(request.cluster)
    jobs = _jobs(config, request, profile)
    return [fault for job in jobs for fault in preflight.faults(config, job, profile, data_follows=len(jobs) > 1)]


def doubt(config: RunConfig, request: Request) -> str | None:
    """What a run that can be submitted will probably fail of, where it can be told; None else."""
    profile = load_profile(request.cluster)
    trains = any(job.stage == "train" for job in _jobs(config, request, profile))
    return preflight.lack_of_room(config, request.nodes, profile) if trains else None


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
    _refuse_queued(slurm, config.run_dir)
    texts: dict[str, str] = {job.stage: render(job, profile) for job in jobs}
    for stage, text in texts.items():
        if fault := slurm.fault(text):
            raise Mistake(f"--cluster {request.cluster}: sbatch would refuse the job file of stage {stage}: {fault}")
    with naming(folder):
        scripts = _write(config, folder, texts)
    append_line(config.run_dir / "events.jsonl", {"time": time.time(), "event": "submit", "cluster": request.cluster})
    records: list[dict[str, Any]] = []
    for job in jobs:
        for position in range(request.chain if job.stage == "train" else 1):
            options = _dependency(records, request)
            job_id = slurm.submit(scripts[job.stage], options)
            record: dict[str, Any] = {"time": time.time(), "job": job_id, "stage": job.stage, "position": position + 1}
            record |= {"cluster": request.cluster, "nodes": job.nodes, "limit": seconds_of(job.time)}
            record |= {"log": str(config.run_dir / "slurm" / f"{job.stage}-{job_id}.log")}
            record |= {"commands": str(commands) if commands else None}
            append_line(config.run_dir / JOBS, record)
            records.append(record)
    chain = [record["job"] for record in records if record["stage"] == "train"]
    write_whole(folder / "chain", "".join(f"{job_id}\n" for job_id in chain).encode())
    return Submission(config.run_dir, records)


def _jobs(config: RunConfig, request: Request, profile: ClusterProfile) -> list[Job]:
    common: dict[str, Any] = {
        "run_dir": str(config.run_dir.absolute()),
        "workdir": str(Path.cwd()),
        "python": profile.python or sys.executable,
        "nodes": request.nodes,
        "time": time_limit(request.time, "--time") if request.time is not None else profile.time,
    }
    training = [Job(**common, steps=config.training.steps, verify=request.verify)] if not request.only_data else []
    return [*([Job(**common, stage="data")] if request.stage == "data" else []), *training]


def _dependency(before: list[dict[str, Any]], request: Request) -> list[str]:
    """Options that make a job wait for the one before it: for a dataset's success, for a training's end."""
    if before:
        kind = "afterok" if before[-1]["stage"] == "data" else "afterany"
        return [f"--dependency={kind}:{before[-1]['job']}", "--kill-on-invalid-dep=yes"]
    return [f"--dependency=afterany:{request.after}"] if request.after is not None else []


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


def _refuse_queued(slurm: Slurm, run_dir: Path) -> None:
    ids = [record["job"] for record in RunFolder.read(run_dir).jobs]
    alive = [job for job in slurm.jobs(ids[-64:]).values() if not job.is_over]
    if alive:
        raise Mistake(
            f"{run_dir}: job {alive[0].id} of this run is {alive[0].state.lower()} already; "
            f"look with 'shardline status {run_dir}' or end it with 'shardline cancel {run_dir}'"
        )


def changes(config: RunConfig) -> list[str]:
    """Keys of the config that a run had otherwise when it was last started; none for a new run."""
    from launcher.local import config_changes

    before = RunFolder.read(config.run_dir).config
    return config_changes(before, config) if before else []
