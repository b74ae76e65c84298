"""From `shardline submit` to the first training step on the practice cluster, split by phase.

    python -m benchmarks.slurm_start [--nodes 2] [--ranks 2] [--json FILE]

Everything is real (sbatch, srun, DeepSpeed over gloo, one network namespace per node) but the nodes share this
machine's cores, so the phases in which all ranks import and build at once are longer than on a cluster of machines. The
same config started by `shardline train` on as many ranks stands beside it: what Slurm adds is the difference.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.loader import write_documents
from common.json_lines import read_lines
from launcher import practice
from launcher.run_folder import diary

PHASES = (
    ("submit command: checks, job file, sbatch", "command", "submitted"),
    ("waiting in the queue", "submitted", "job_start"),
    ("node health check", "job_start", "launch"),
    ("Python, imports, rendezvous", "launch", "start"),
    ("model, engine, data", "start", "ready"),
    ("first step", "ready", "step"),
)
PATIENCE = 300.0


def main() -> int:
    """Measures both ways and prints them side by side."""
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--nodes", type=int, default=2)
    options.add_argument("--ranks", type=int, default=2, help="ranks on each node")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    args = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shardline-bench-", dir="/tmp"))
    os.environ["PRACTICE_DIR"] = str(folder / "cluster")
    try:
        config = _write_config(folder)
        local = _local(config, folder, args.nodes * args.ranks)
        if practice.up(args.nodes, [folder]):
            return 1
        slurm = _submitted(config, folder, args.nodes, args.ranks)
    finally:
        practice.call(["down"])
        shutil.rmtree(folder, ignore_errors=True)
    _show(slurm, local, args)
    return 0


def _write_config(folder: Path) -> Path:
    tree = {
        "name": "bench",
        "runs_dir": str(folder / "runs"),
        "tokenizer": {"path": str(folder / "none")},
        "data": {"path": str(write_documents(folder / "dataset", 200_000))},
        "model": {"num_layers": 2, "d_model": 64, "num_heads": 4, "d_ff": 128},
        "training": {"steps": 2, "sequence_length": 128, "global_batch_size": 32, "precision": "fp32"},
        "checkpoint": {"interval_steps": 1},
    }
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def _submitted(config: Path, folder: Path, nodes: int, ranks: int) -> dict[str, float]:
    """Moments of a submitted run, seconds since the epoch, by name."""
    profile = folder / "cluster.yaml"
    tree = yaml.safe_load((Path(practice.__file__).parent.parent / "configs/clusters/practice.yaml").read_text())
    profile.write_text(yaml.safe_dump({**tree, "ranks_per_node": ranks}))
    known = {"command": time.time()}
    _run("submit", str(config), "--cluster", str(profile), "--nodes", str(nodes), "--set", "name=slurm")
    run = folder / "runs" / "slurm"
    known["submitted"] = read_lines(run / "slurm" / "jobs.jsonl")[0]["time"]  # the job begins before the command ends
    return known | moments(run)


def _local(config: Path, folder: Path, ranks: int) -> dict[str, float]:
    known = {"command": time.time()}
    _run("train", str(config), "--nproc", str(ranks), "--set", "name=local")
    return known | moments(folder / "runs" / "local")


def _run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "launcher.cli", *words], check=True, stdout=subprocess.DEVNULL)


def moments(run: Path) -> dict[str, float]:
    """When each phase of a run began, once its first step is done."""
    deadline = time.monotonic() + PATIENCE
    steps: list[dict[str, Any]] = []
    while not steps:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{run}: no step within {PATIENCE:g} s")
        time.sleep(0.1)
        steps = [line for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    events = {event["event"]: event["time"] for event in reversed(diary(run).records)}
    return {name: events[name] for name in ("job_start", "launch", "start", "ready") if name in events} | {
        "step": steps[0]["time"]
    }


def _show(slurm: dict[str, float], local: dict[str, float], args: argparse.Namespace) -> None:
    rows = [(what, slurm[end] - slurm[begin], begin, end) for what, begin, end in PHASES]
    rows.append(("in all", slurm["step"] - slurm["command"], "command", "step"))
    world = args.nodes * args.ranks
    table = Table(title=f"From submit to the first step, {args.nodes} nodes x {args.ranks} ranks", title_justify="left")
    for name in ("phase", "Slurm, s", f"shardline train on {world} ranks here, s"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for what, seconds, begin, end in rows:
        here = f"{local[end] - local[begin]:.1f}" if begin in local and end in local else ""
        table.add_row(what, f"{seconds:.1f}", here)
    Console(width=120).print(table)
    if args.json:
        figures = {what: seconds for what, seconds, *_ in rows}
        args.json.write_text(json.dumps({"slurm": figures, "local": local["step"] - local["command"]}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
