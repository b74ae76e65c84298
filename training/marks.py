"""Words for the script of a scheduler's job, which ranks leave in RUN_DIR/slurm/marks-ATTEMPT (see slurm/functions.sh).

The script cannot tell from srun's status why they ended, or which node they blame.
"""

from pathlib import Path


def leave_marks(run_dir: Path, attempt: str, *names: str) -> None:
    """Leaves them, where this start is one of a job that is still this run's."""
    folder = run_dir / "slurm" / f"marks-{attempt}"
    for name in names if folder.is_dir() else ():  # a later start clears the folder away
        (folder / name).touch()
