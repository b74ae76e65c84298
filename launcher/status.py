"""Where runs on a cluster stand, from the queue and the files of the run alone."""

import dataclasses
import math
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from common.mistakes import Mistake
from launcher.goodput import Goodput
from launcher.run_folder import JOBS, RunFolder, existing
from launcher.slurm_commands import QueuedJob, Slurm

SHOWN_SKIPS = 3
"""Steps passed over that are named."""


@dataclasses.dataclass(frozen=True)
class Status:
    """How a run fares."""

    run: str
    """Its folder."""
    state: str
    """queued, starting, running, ending, requeued, finished, stopped, broken, lost, or not submitted."""
    detail: str
    """Why, in words."""
    job: int | None = None
    """The job that runs or waits, else the last one."""
    stage: str = "train"
    """train or data."""
    restarts: int = 0
    """How often that job has been restarted."""
    nodes: str = ""
    """Nodes it runs on."""
    expected_start: str = ""
    """When Slurm expects a waiting job to start; empty when it does not know."""
    waiting: tuple[int, ...] = ()
    """Further jobs of the chain."""
    step: int = 0
    """Steps done."""
    steps: int = 0
    """Steps of the run."""
    loss: float | None = None
    """Loss of the last step, nats per target."""
    tokens_per_second: float | None = None
    """Speed over the last line of metrics."""
    mfu: float | None = None
    """Share of the peak."""
    seconds_left: float | None = None
    """Time the remaining steps will take at this speed."""
    checkpoint: str = ""
    """The newest checkpoint."""
    checkpoint_age: float | None = None
    """Seconds since it was saved."""
    silent_seconds: float | None = None
    """Seconds since the last line of metrics."""
    slowest: str = ""
    """The rank that took longest by itself over the last line of metrics, in words."""
    sources: dict[str, float] = dataclasses.field(default_factory=dict)
    """How often it has gone through each source of its mix."""
    slow: tuple[str, ...] = ()
    """Ranks that stayed slow since the last start, one sentence each."""
    goodput: Goodput | None = None
    """How the time went, from the submission or the first start to the end or now."""
    excluded: tuple[str, ...] = ()
    """Nodes that its jobs left as unfit since the last submission, with the reason."""
    skipped: tuple[str, ...] = ()
    """Steps that were passed over and times that the run went back, the last few, with the reason."""
    left_out: tuple[str, ...] = ()
    """Lines of the run's files that cannot be read."""


def status(run_dir: Path) -> Status:
    """How the run in this folder fares.

    Raises ValueError when it is no run.
    """
    folder, config = existing(run_dir)
    records, events = folder.jobs, folder.events
    facts = {"run": str(run_dir), "steps": config.training.steps, **_progress(folder, config.training.steps)}
    facts |= {"excluded": _excluded(events), "skipped": _skipped(events), "left_out": tuple(folder.left_out)}
    facts |= {"goodput": folder.goodput(time.time())}
    if not records:
        return Status(**facts, state="not submitted", detail="no job of a cluster; started with shardline train")
    slurm = Slurm(records[-1].get("commands"))
    queue = slurm.jobs([record["job"] for record in records[-64:]])
    alive = sorted((job for job in queue.values() if not job.is_over), key=lambda job: (job.state == "PENDING", job.id))
    current = alive[0] if alive else None
    job_id = current.id if current else _last_started(records, events)
    record = next(record for record in records if record["job"] == job_id)
    mine = [event for event in events if event.get("job") == job_id]
    state, detail = _state(current, queue.get(job_id), mine, facts)
    return Status(
        **facts,
        state=state,
        detail=detail,
        job=job_id,
        stage=record["stage"],
        restarts=max((event.get("restart", 0) for event in mine), default=0),
        nodes=current.nodes if current else "",
        expected_start=slurm.expected_start(job_id) if current and current.state == "PENDING" else "",
        waiting=tuple(job.id for job in alive[1:]),
    )


def _last_started(records: list[dict[str, Any]], events: list[dict[str, Any]]) -> int:
    known = {record["job"] for record in records}
    started = [event["job"] for event in events if event.get("job") in known]
    return started[-1] if started else records[-1]["job"]


def _state(
    current: QueuedJob | None, last: QueuedJob | None, events: list[dict[str, Any]], facts: dict[str, Any]
) -> tuple[str, str]:
    """State and reason, by the queue and the job's own events."""
    ends = [event for event in events if event["event"] == "job_end"]
    end = max(reversed(ends), key=lambda event: event.get("restart", 0), default=None)
    if current is None:
        return _over(last, end, facts)
    if current.state == "PENDING":
        return ("requeued", end.get("message", "")) if end else ("queued", pending_reason(current))
    if current.state != "RUNNING":
        return "ending", f"Slurm calls it {current.state}"
    starts = [index for index, event in enumerate(events) if event["event"] == "job_start"]
    now = [event["event"] for event in events[starts[-1] :]] if starts else []
    if "job_end" in now:
        return "ending", events[-1].get("message", "")
    if "ready" in now or "ray_ready" in now:
        fewer = next((event for event in events[starts[-1] :] if event["event"] == "fewer_nodes"), None)
        short = f", on {fewer.get('use')} nodes of {fewer.get('wanted')}" if fewer else ""
        return "running", f"{current.used} of {current.limit}{short}"
    if starts and events[starts[-1]].get("stage") == "data":
        return "starting", "Ray is starting on the nodes"
    phases = {"launch": "ranks are starting", "verify": "ranks are held against a plain loop"}
    phases["wait_for_nodes"] = "waiting for the nodes that are missing"
    phase = next((words for event, words in phases.items() if event in now), "nodes are being checked")
    return "starting", phase if now else "the job is starting"


def _over(last: QueuedJob | None, end: dict[str, Any] | None, facts: dict[str, Any]) -> tuple[str, str]:
    if end is not None:
        names = {"finished": "finished", "time": "stopped", "chain_over": "stopped", "cancelled": "stopped"}
        return names.get(end.get("reason", ""), "broken"), end.get("message", "it left no reason")
    called = f"Slurm calls the job {last.state}" if last else "Slurm knows the job no more"
    return "lost", f"{called}, and it left no word; submit it again to go on"


def pending_reason(job: QueuedJob) -> str:
    """Why a job waits, in words."""
    words = {
        "Priority": "others come first",
        "Resources": "waiting for nodes to become free",
        "Dependency": "waiting for the job before it",
        "BeginTime": "begins in a moment",
        "ReqNodeNotAvail": "nodes it needs are down or reserved",
        "PartitionDown": "the partition is down",
        "QOSMaxJobsPerUserLimit": "your limit of jobs is reached",
        "AssocGrpGRES": "your group's limit of GPUs is reached",
    }
    plain = job.reason.split(",")[0].strip("()")
    return f"{words[plain]} ({plain})" if plain in words else job.reason


def _progress(folder: RunFolder, steps: int) -> dict[str, Any]:
    last, now = folder.last, time.time()
    facts: dict[str, Any] = {}
    if last:
        facts = {key: last.get(key) for key in ("step", "loss", "tokens_per_second", "mfu")}
        facts["seconds_left"] = (steps - last["step"]) * last["step_seconds"]
        facts["silent_seconds"] = now - last["time"] if last.get("time") else None
    facts["sources"] = epochs_of(last)
    if "slowest_rank" in last:
        where = f"rank {last['slowest_rank']} on node {last.get('slowest_node', '?')}"
        facts["slowest"] = f"{where}, {last.get('slowest_ratio', math.nan):.2f} times the median"
    facts["slow"] = _slow(folder.events)
    if folder.checkpoint:
        facts |= {"checkpoint": folder.checkpoint.name, "checkpoint_age": now - folder.checkpoint.time}
    return facts


def epochs_of(line: dict[str, Any]) -> dict[str, float]:
    """Epochs of each source by a line of metrics; none where a run mixes none."""
    drawn = {name: of.get("epochs") for name, of in line.get("sources", {}).items() if isinstance(of, dict)}
    return {name: epochs for name, epochs in drawn.items() if isinstance(epochs, int | float)}


def _slow(events: list[dict[str, Any]]) -> tuple[str, ...]:
    started = max((index for index, event in enumerate(events) if event["event"] == "start"), default=0)
    told = [event["message"] for event in events[started:] if event["event"] == "slow rank" and "message" in event]
    return tuple(dict.fromkeys(told))


def _excluded(events: list[dict[str, Any]]) -> tuple[str, ...]:
    submitted = max((index for index, event in enumerate(events) if event["event"] == "submit"), default=0)
    unfit = [event for event in events[submitted:] if event["event"] in ("unhealthy", "corrupt") and "node" in event]
    return tuple(dict.fromkeys(f"{event.get('node')}: {event.get('why')}" for event in unfit))


def cluster_of(runs: list[Path]) -> str:
    """The profile that the first of these runs was submitted with. Raises ValueError when there is none."""
    records = [record for run in runs[:1] for record in RunFolder.read(run).jobs if record.get("cluster")]
    if not records:
        raise Mistake("--nodes: no run was submitted from here, so say whose nodes, as --cluster plain")
    return records[-1]["cluster"]


def _skipped(events: list[dict[str, Any]]) -> tuple[str, ...]:
    words = {"skip": "step {step}: {reason}", "roll_back": "went back before step {before}, on with sample {samples}"}
    told = [words[event["event"]].format_map(_Known(event)) for event in events if event["event"] in words]
    return tuple(dict.fromkeys(told))[-SHOWN_SKIPS:]


class _Known(dict):
    """Keys of an event; ? for those it lacks."""

    def __missing__(self, key: str) -> str:
        return "?"


def runs_below(folder: Path) -> list[Path]:
    """Runs in a folder that were submitted to a cluster, the last submitted first."""
    found = folder.glob(f"*/{JOBS}")
    return [path.parent.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def when(text: str) -> str:
    """A time of Slurm's as people read it: today's without the date."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    now = datetime.now()
    if moment.date() == now.date():
        return f"{moment:%H:%M}"
    return f"{moment:%a %d %b %H:%M}" if moment.year == now.year else f"{moment:%d %b %Y}"
