"""Every phase of a run x every way to fail on one rank: how long until the whole job has ended, and what it says.

    python -m benchmarks.phases [--quick] [--check] [--json FILE] [--phase PHASE ...] [--minutes 0.75]

Each is a real launch of two ranks on this machine, in which one rank stops (SIGSTOP), raises or sleeps for an hour at
one point, planted from outside (planted/sitecustomize.py). It is met when no process is left within the phase's
deadline and the launch ends with a sentence that names rank, node and phase. `--quick` has only rank 1 fail.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.synthetic import save_documents

POINTS = {
    "rendezvous": "1 training.distributed connect",
    "import": "1 training.engine",
    "data": "1 training.state.choosing choose",
    "load": "1 training.first_weights put_weights",
    "first step": "1 training.step run_step",
    "step": "5 training.step run_step",
    "save": "1 training.state.saving commit",
    "evaluation": "1 training.evaluation Evaluator.run",
    "leaving": "1 training.distributed disconnect",
}
"""Where a rank fails in each phase: number of the call, module, name."""
WAYS = ("SIGSTOP", "raising", "sleeping")
PATIENCE = 600.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one fault."""

    phase: str
    """Where the rank failed."""
    way: str
    """How."""
    rank: int
    """Which."""
    seconds: float
    """From the fault until no process of the launch was left."""
    deadline: float
    """Seconds that the phase may take."""
    sentence: str
    """What the launch ended with."""

    @property
    def named(self) -> bool:
        """Whether the sentence says which rank on which node failed in which phase."""
        words = rf"rank {self.rank} on node {re.escape(socket.gethostname())}\b.*\bphase {self.phase}\b"
        return re.search(words, self.sentence) is not None

    @property
    def met(self) -> bool:
        """Whether the job ended in time and said why."""
        return self.seconds <= self.deadline and self.named


def main() -> int:
    """Goes through the matrix."""
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--check", action="store_true", help="exit 1 when one is missed")
    options.add_argument("--quick", action="store_true", help="only rank 1 fails")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes to FILE")
    options.add_argument("--phase", nargs="+", choices=POINTS, default=list(POINTS), help="phases to fail in")
    options.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS), help="ways to fail")
    options.add_argument("--minutes", type=float, default=0.75, help="deadline of every phase")
    args = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shardline-phases-"))
    outcomes = []
    try:
        data = documents(folder / "data")
        for phase in args.phase:
            for way in args.way:
                for rank in (1,) if args.quick else (1, 0):
                    outcomes.append(fail(folder, data, phase, way, rank, args.minutes))
                    show(outcomes[-1:])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(outcomes)
    if args.json:
        rows = [{**dataclasses.asdict(each), "named": each.named, "met": each.met} for each in outcomes]
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if args.check and not all(each.met for each in outcomes) else 0


def documents(folder: Path) -> Path:
    """A small dataset with held-out documents."""
    lengths = np.random.default_rng(0).integers(20, 60, 500)
    tokens = np.random.default_rng(1).integers(10, 300, lengths.sum())
    return save_documents(folder, tokens, lengths, 307, splits=("train", "validation"))


def fail(folder: Path, data: Path, phase: str, way: str, rank: int, minutes: float) -> Outcome:
    """Launches a run in which this rank fails so in this phase, and waits for its end."""
    run, planted = folder / "run", folder / "planted"
    shutil.rmtree(run, ignore_errors=True)
    planted.unlink(missing_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(tree(folder, data, minutes)))
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here / "planted"), str(here.parent)])
    environment = {"PYTHONPATH": paths, "PLANTED": f"{rank} {way} {POINTS[phase]}", "PLANTED_AT": str(planted)}
    command = [sys.executable, "-m", "launcher.cli", "train", str(config)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=PATIENCE, cwd=here.parent
    )
    assert planted.exists(), f"{phase} {way}: the fault never came: {done.stderr[-2000:]}"
    while left(run):
        time.sleep(0.05)
    seconds = time.time() - float(planted.read_text())
    return Outcome(phase, way, rank, seconds, minutes * 60, " ".join(done.stderr.split()))


def left(run: Path) -> list[int]:
    """Processes whose command line names the run's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it ended while we were looking
            continue
    return found


def tree(folder: Path, data: Path, minutes: float) -> dict:
    """The config of a small run of two ranks."""
    return {
        "name": "run",
        "runs_dir": str(folder),
        "tokenizer": {"path": str(folder / "none")},
        "data": {"path": str(data)},
        "model": {"num_layers": 1, "d_model": 32, "num_heads": 2, "d_ff": 64},
        "training": {
            "steps": 12,
            "sequence_length": 32,
            "global_batch_size": 8,
            "precision": "fp32",
            "num_processes": 2,
            "threads_per_process": 1,
            "start_minutes": minutes,
            "hang_minutes": minutes,
        },
        "evaluation": {"interval_steps": 8, "num_samples": 8},
        "checkpoint": {"interval_steps": 10},
    }


def show(outcomes: list[Outcome]) -> None:
    """Prints them as a table."""
    table = Table(title="A rank fails: until all have ended", title_justify="left")
    for name in ("phase", "way", "rank", "seconds", "deadline", "sentence", ""):
        table.add_column(name)
    for each in outcomes:
        seconds, deadline = f"{each.seconds:.1f}", f"{each.deadline:.0f}"
        verdict = "met" if each.met else "MISSED"
        table.add_row(each.phase, each.way, str(each.rank), seconds, deadline, each.sentence, verdict)
    Console(width=180).print(table)


if __name__ == "__main__":
    sys.exit(main())
