"""A practice cluster for tests: start it, submit to it, break it, and look at what came of a run."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

from launcher import practice
from launcher.config import check_config
from launcher.run_folder import diary
from launcher.submit import Request, submit
from tests.training.runs import REPOSITORY, tiny_config

PATIENCE = 480.0
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")


@dataclasses.dataclass
class Cluster:
    """The practice cluster of this session, and the folder its runs go to."""

    folder: Path
    dataset: Path

    @property
    def disks(self) -> Path:
        """What plays the nodes' own disks: a folder for each."""
        return self.folder / "disks"

    def profile(self, **keys) -> str:
        """A profile like `practice` with some keys changed; returns its path."""
        tree = yaml.safe_load((REPOSITORY / "configs" / "clusters" / "practice.yaml").read_text())
        path = self.folder / f"profile-{abs(hash(str(sorted(keys.items()))))}.yaml"
        path.write_text(yaml.safe_dump({**tree, **keys}))
        return str(path)

    def config(self, name: str, **sections):
        """A small run of 160 steps, saved every 30."""
        tree = tiny_config(
            self.dataset,
            training={"steps": 160, **sections.pop("training", {})},
            evaluation={"interval_steps": None, "num_samples": 8},
            checkpoint={"interval_steps": 30, "keep": 100, **sections.pop("checkpoint", {})},
            **sections,
        ).model_dump(mode="json")
        tree |= {"name": name, "runs_dir": str(self.folder / "runs"), "tokenizer": {"path": str(self.folder / "none")}}
        return check_config(tree, name)

    def submit(self, name: str, cluster: str, config=None, **request) -> "Run":
        """Submits a small run of this name."""
        done = submit(config or self.config(name), Request(cluster, **{"nodes": 2, "time": "00:10:00", **request}))
        return Run(self, done.run_dir, [record["job"] for record in done.jobs])

    def call(self, *words: str) -> str:
        """Runs one of Slurm's commands and returns what it prints."""
        command = [str(practice.commands() / words[0]), *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def rest(self) -> None:
        """Waits until every node is idle: only then is it known which ones a job gets, the first of all."""
        deadline = time.monotonic() + PATIENCE
        while busy := set(self.call("sinfo", "--noheader", "--format=%T").split()) - {"idle"}:
            assert time.monotonic() < deadline, (
                f"nodes are {busy}: {self.call('squeue')}{self.call('sinfo', '-N', '-l')}"
            )
            time.sleep(0.5)

    def controller(self, action: str) -> None:
        """Stops Slurm's controller, or starts it again."""
        command = [str(practice.SCRIPT), "ctld", action]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    def node(self, action: str, name: str) -> None:
        """Breaks a node or mends it."""
        done = subprocess.run([str(practice.SCRIPT), "node", action, name], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@dataclasses.dataclass
class Run:
    """A run on the cluster."""

    cluster: Cluster
    folder: Path
    jobs: list[int]
    lost_at: float = 0.0
    """When a node of it was broken, seconds since the epoch."""
    reached: int = 0
    """Steps done by then."""

    def state(self, job: int) -> str:
        """What Slurm calls a job: PENDING, RUNNING, COMPLETED ..."""
        words = self.cluster.call("scontrol", "-o", "show", "job", str(job)).split()
        return next(word.partition("=")[2] for word in words if word.startswith("JobState="))

    def nodes(self, job: int) -> list[str]:
        """Nodes a job runs on."""
        listing = self.cluster.call("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip()
        return self.cluster.call("scontrol", "show", "hostnames", listing).split()

    def wait(self, seconds: float = PATIENCE) -> str:
        """Waits until no job of the run will do anything more; returns the state of the last one."""
        deadline = time.monotonic() + seconds
        while not self.is_over():
            assert time.monotonic() < deadline, self.story()
            time.sleep(0.2)
        return self.state(self.jobs[-1])

    def is_over(self) -> bool:
        """Whether no job of the run will do anything more."""
        return all(self.state(job).startswith(OVER) for job in self.jobs)

    def until(self, happened: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Waits for something; fails with the jobs' logs when it does not come, or cannot any more."""
        deadline, looks = time.monotonic() + seconds, 0
        while not happened():
            looks += 1
            assert time.monotonic() < deadline and (looks % 20 or not self.is_over()), self.story()
            time.sleep(0.1)

    def until_step(self, step: int, restart: int = 0, job: int | None = None) -> None:
        """Waits until this start of a job has done `step` steps, counted from the run's beginning."""
        job = job or self.jobs[0]

        def done() -> bool:
            starts = [e for e in self.events("ready") if (e["job"], e["restart"]) == (job, restart)]
            return bool(starts) and self.last_step() >= max(step, starts[-1]["step"] + 1)

        self.until(done)

    def ranks(self) -> list[psutil.Process]:
        """Its ranks, as this machine sees their processes."""
        return ranks_of(self.folder)

    def script(self, job: int) -> psutil.Process:
        """The shell that runs a job's script, on the first of its nodes."""
        shells = [found for found in psutil.process_iter(["cmdline"]) if "slurm_script" in str(found.info["cmdline"])]
        (shell,) = (each for each in shells if f"job{job:05d}" in str(each.info["cmdline"]) and not _is_copy(each))
        return shell

    def run_out_of_time(self, job: int) -> None:
        """Has Slurm warn a job whose profile wants its warning 55 s before the end.

        Slurm looks at time limits twice a minute; the ranks are frozen so long, as if in a very long step.
        """
        log = self.folder / "slurm" / f"train-{job}.log"
        ranks = self.ranks()
        assert ranks, self.story()
        for rank in ranks:
            rank.suspend()
        warned = log.read_text().count("USR1: the time limit is near")
        began = next(event["time"] for event in reversed(self.events("job_start")) if event["job"] == job)
        minutes = int(time.time() - began + 30) // 60 + 1  # half a minute to a minute and a half are left
        self.cluster.call("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        self.until(lambda: log.read_text().count("USR1: the time limit is near") > warned)
        for rank in ranks:
            rank.resume()

    def last_step(self) -> int:
        """Last step in the metrics."""
        return max(self.losses(), default=0)

    def losses(self) -> dict[int, tuple[float, float]]:
        """Loss and gradient norm of each step."""
        return losses(self.folder)

    def events(self, kind: str) -> list[dict]:
        """Events of one kind."""
        return [event for event in diary(self.folder).records if event["event"] == kind]

    def ends(self) -> list[str]:
        """Why each start of a job ended, as far as it could say."""
        return [event["reason"] for event in self.events("job_end")]

    def story(self) -> str:
        """All that is known of what happened."""
        logs = [*sorted((self.folder / "slurm").glob("*.log")), *sorted((self.folder / "logs").glob("*.log"))]
        texts = [f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in logs]
        events = str(diary(self.folder).records[-30:])
        return "\n".join([*texts, events, self.cluster.call("squeue"), self.cluster.call("sinfo", "-N", "-l")])


def _is_copy(shell: psutil.Process) -> bool:
    """Whether this is a part of a script that runs in the background."""
    parent = shell.parent()
    return parent is not None and "slurm_script" in str(parent.cmdline())


def ranks_of(folder: Path) -> list[psutil.Process]:
    """Processes of a run's ranks on the practice cluster."""
    words = ["-P", "-m", "slurm.rank", str(folder)]
    return [found for found in psutil.process_iter(["cmdline"]) if (found.info["cmdline"] or [])[1:] == words]


def losses(folder: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of each step in a run's metrics; fails when a step stands there twice."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    steps = [line for line in lines if "loss" in line]
    assert len({line["step"] for line in steps}) == len(steps), "a step was written twice"
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in steps}


def train_here(config) -> dict[int, tuple[float, float]]:
    """Trains on this machine, as `shardline train` does, and returns the losses."""
    path = Path(config.runs_dir) / f"{config.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "launcher.cli", "train", str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(config.run_dir)
