"""The practice cluster: a real Slurm of several nodes on this machine, started by slurm/practice_cluster."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common.mistakes import Mistake

SCRIPT = Path(__file__).resolve().parent.parent / "slurm" / "practice_cluster"


def folder() -> Path:
    """Where the cluster keeps its state."""
    return Path(os.environ.get("PRACTICE_DIR") or f"/tmp/practice.{os.getuid()}")


def commands() -> Path:
    """Folder of `sbatch`, `squeue` and the others as this cluster has them.

    Raises ValueError when it has never been started.
    """
    if not (folder() / "bin" / "sbatch").exists():
        raise Mistake("the practice cluster is not up; start it with 'shardline practice-cluster up'")
    return folder() / "bin"


def call(arguments: Sequence[str]) -> int:
    """Runs the script with these arguments, its output going where ours goes; returns its exit status."""
    return subprocess.run([str(SCRIPT), *arguments], check=False).returncode


def up(nodes: int, shared: Sequence[Path]) -> int:
    """Starts the cluster; its nodes see the current folder, this Python's and `shared`, wherever they are."""
    folders = {Path.cwd(), Path(sys.prefix), Path(sys.base_prefix), Path(__file__).resolve().parent.parent, *shared}
    options = [word for path in sorted(folders) for word in ("--share", str(path))]
    return call(["up", "-n", str(nodes), *options])
