"""How a run stands, read from its folder once and handed on as one value.

config.yaml, checkpoints/latest, metrics.jsonl, events.jsonl, events/*.jsonl, slurm/jobs.jsonl -> RunFolder

Needs neither torch nor a scheduler, so that login nodes can ask too. Lines that a kill tore are left out and named.
"""

import contextlib
import dataclasses
from pathlib import Path

from common.json_lines import Lines, Record, examine, read_last
from common.mistakes import Mistake
from launcher.config import anchored, load_config, save_config
from launcher.goodput import Goodput, goodput
from launcher.places import CONFIG
from training.config import RunConfig
from training.lines import EVENT, JOB, METRICS
from training.state.folder import latest_checkpoint, step_of

METRICS_FILE, EVENTS, JOBS = "metrics.jsonl", "events.jsonl", "slurm/jobs.jsonl"


@dataclasses.dataclass(frozen=True)
class Saved:
    """The checkpoint that a run goes on from, by its name: whether it is sound is another question."""

    name: str
    step: int
    time: float
    """When it took its place, seconds since 1970."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """How the run in a folder stood when it was looked at."""

    path: Path
    config: RunConfig | None
    """Its config; None when it was never started."""
    checkpoint: Saved | None
    """The newest checkpoint; None before the first."""
    last: Record
    """The last line of metrics of a training step; empty when there is none."""
    evaluation: Record
    """The last evaluation, with its step; empty when there is none."""
    events: list[Record]
    """Its diary, oldest first."""
    jobs: list[Record]
    """Jobs submitted for it, oldest first; empty for a run of this machine."""
    left_out: list[str]
    """Lines of its files that cannot be read, one sentence each."""

    @classmethod
    def read(cls, path: Path) -> "RunFolder":
        """How the run in this folder stands; all is empty when there is none."""
        config = path / CONFIG
        events, jobs = diary(path), examine(path / JOBS, JOB)
        last = read_last(path / METRICS_FILE, METRICS, "loss")
        # a long run's whole file would be searched for what its diary says is not there
        evaluated = not events.records or any(event["event"] == "evaluate" for event in events.records)
        evaluation = read_last(path / METRICS_FILE, METRICS, "evaluation").records if evaluated else []
        return cls(
            path=path,
            config=load_config(config) if config.exists() else None,
            checkpoint=_newest(path),
            last=next(iter(last.records), {}),
            evaluation=next(({"step": line["step"], **line["evaluation"]} for line in evaluation), {}),
            events=events.records,
            jobs=jobs.records,
            left_out=[*events.left_out, *jobs.left_out, *last.left_out],
        )

    def goodput(self, now: float) -> Goodput:
        """How the time of the run went, up to now."""
        return goodput(self.events, self.jobs, self.last, now)

    @property
    def step(self) -> int:
        """Step of the newest checkpoint, 0 before the first."""
        return self.checkpoint.step if self.checkpoint else 0

    def of_start(self, attempt: str) -> list[Record]:
        """Events of one start of the run."""
        return [event for event in self.events if event.get("attempt") == attempt]


def existing(path: Path) -> tuple[RunFolder, RunConfig]:
    """How the run in this folder stands, and its config. Raises ValueError when there is no run in it."""
    folder = RunFolder.read(path)
    if folder.config is None:
        raise Mistake(f"{path}: no {CONFIG} in it, so it is not a run; name a folder such as runs/quickstart")
    return folder, folder.config


def keep_config(config: RunConfig) -> None:
    """Writes the resolved config into the run's folder, with paths that mean the same from everywhere."""
    save_config(anchored(config), config.run_dir / CONFIG)


def metrics_of(path: Path) -> list[Record]:
    """All lines of a run's metrics, oldest first."""
    return examine(path / METRICS_FILE, METRICS).records


def last_step(path: Path) -> Record:
    """The last line of metrics of a training step, empty before the first; cheap enough to ask all the time."""
    return next(iter(read_last(path / METRICS_FILE, METRICS, "loss").records), {})


def diary(path: Path) -> Lines:
    """Events of all who write some, oldest first: rank 0's, and those of other machines in files of their own."""
    files = [path / EVENTS, *sorted((path / "events").glob("*.jsonl"))]
    found = [examine(file, EVENT) for file in files]
    events = [event for lines in found for event in lines.records]
    if len(files) > 1:
        events.sort(key=lambda event: event.get("time", 0))
    return Lines(events, [sentence for lines in found for sentence in lines.left_out])


def _newest(run_dir: Path) -> Saved | None:
    while folder := latest_checkpoint(run_dir):
        with contextlib.suppress(FileNotFoundError):  # a newer one has just replaced it: look again
            return Saved(folder.name, step_of(folder), folder.stat().st_mtime)
    return None
