"""Slurm's commands; no other module of Python calls them.

Works with Slurm 22.05 and later, with or without its database: the queue's answers come from `squeue`, never `sacct`.
"""

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.mistakes import Mistake
from launcher.console import Broken

TIMEOUT_SECONDS = 60
FIELDS = {"id": "A", "state": "T", "reason": "r", "start": "S", "used": "M", "limit": "l", "nodes": "N", "name": "j"}
SEPARATOR = "\x1f"
CALLERS = ("SLURM_", "SBATCH_", "SALLOC_", "SQUEUE_", "SINFO_", "SCANCEL_", "SCONTROL_")
"""Variables by which an environment gives options to Slurm's commands, and to those of a job that inherits it."""
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
"""Those among them that say where the cluster is and who asks."""


@dataclasses.dataclass(frozen=True)
class QueuedJob:
    """A job as the queue shows it."""

    id: int
    state: str
    """PENDING, RUNNING, COMPLETING, COMPLETED, FAILED ..."""
    reason: str
    """Why it waits, as Priority or Dependency; None when it does not."""
    start: str
    """When it started or, where Slurm says so, will; `N/A` when unknown."""
    used: str
    """Time it has run."""
    limit: str
    """Time limit."""
    nodes: str
    """Nodes it runs on, as node[0-1]."""
    name: str
    """Its name."""

    @property
    def is_over(self) -> bool:
        """Whether it will do nothing more."""
        alive = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "STOPPED", "SIGNALING")
        return not self.state.startswith((*alive, "REQUEUE", "RESIZING", "STAGE_OUT", "SPECIAL_EXIT"))


class Slurm:
    """A cluster by its commands: those in `folder`, or those on PATH."""

    def __init__(self, folder: str | Path | None = None):
        self.folder = str(folder) if folder else None

    def submit(self, script: Path, options: Sequence[str] = ()) -> int:
        """Submits a job file from its own folder and returns the job's id. ValueError with Slurm's words if refused."""
        done = self._run(["sbatch", "--parsable", *options, script.name], cwd=script.parent)
        if done.returncode:
            raise Mistake(f"sbatch refuses {script}: {_words(done)}")
        return int(done.stdout.strip().split(";")[0])

    def fault(self, text: str, options: Sequence[str] = ()) -> str:
        """What sbatch has against a job file of this text, by `--test-only`; empty when it would take it."""
        done = self._run(["sbatch", "--test-only", *options], given=text)
        return _words(done) if done.returncode else ""

    def jobs(self, ids: Sequence[int]) -> dict[int, QueuedJob]:
        """The jobs of these ids that Slurm still knows (a finished one for some minutes)."""
        form = SEPARATOR.join(f"%{letter}" for letter in FIELDS.values())
        found = {}
        for job_id in ids:  # one by one: an id that Slurm has forgotten would hide the others
            done = self._run(["squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--format={form}"])
            if done.returncode and "Invalid job id" not in done.stderr:
                raise Broken(f"squeue does not answer: {_words(done)}")
            for line in done.stdout.splitlines():
                values = dict(zip(FIELDS, line.split(SEPARATOR), strict=True))
                found[job_id] = QueuedJob(**{**values, "id": int(values["id"])})  # type: ignore[arg-type]
        return found

    def nodes(self, partition: str | None) -> set[str]:
        """Nodes of a partition, or of the default one, that are up, whoever uses them."""
        words = ["sinfo", "--noheader", "--Node", "--states=idle,alloc,mix,comp", "--format=%N %P"]
        done = self._run([*words, f"--partition={partition}"] if partition else words)
        if done.returncode:
            raise Broken(f"sinfo does not answer: {_words(done)}")
        found = [line.split() for line in done.stdout.splitlines()]
        return {name for name, of in found if partition or of.endswith("*")}

    def expected_start(self, job_id: int) -> str:
        """When Slurm expects a waiting job to start; empty when it does not know yet."""
        done = self._run(["squeue", "--noheader", "--start", f"--jobs={job_id}", "--format=%S"])
        answer = done.stdout.strip()
        return "" if answer in ("", "N/A") else answer

    def cancel(self, ids: Sequence[int]) -> None:
        """Ends jobs; those that are over stay as they are."""
        if ids:
            self._check(["scancel", "--quiet", *map(str, ids)])

    def ask_to_save(self, job_id: int) -> None:
        """Sends the ranks of a running job the signal that means: save and leave."""
        self._check(["scancel", "--signal=USR1", str(job_id)])

    def _check(self, command: list[str]) -> None:
        done = self._run(command)
        if done.returncode:
            raise Broken(f"{' '.join(command)}: {_words(done)}")

    def _run(
        self, command: list[str], cwd: Path | None = None, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder}{os.pathsep}{os.environ.get('PATH', '')}" if self.folder else None
        program = shutil.which(command[0], path=path)
        if program is None:
            raise Mistake(
                f"{command[0]}: not found; run this where Slurm's commands are (a login node), "
                "or use --cluster practice after 'shardline practice-cluster up'"
            )
        words = [program, *command[1:]]
        try:
            limits: dict[str, Any] = {"capture_output": True, "text": True, "timeout": TIMEOUT_SECONDS}
            return subprocess.run(words, cwd=cwd, input=given, env=environment(), **limits)
        except subprocess.TimeoutExpired:
            raise Broken(f"{command[0]} did not answer within {TIMEOUT_SECONDS} s; is Slurm's controller up?") from None


def environment() -> dict[str, str]:
    """The environment of Slurm's commands: ours without a caller's options, so that jobs get what was asked for."""
    return {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(CALLERS)}


def _words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return "; ".join(line.removeprefix("sbatch: error: ") for line in lines) or f"exit code {done.returncode}"
