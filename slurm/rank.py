"""One rank of a Slurm job: `srun ... python -P -m slurm.rank RUN_DIR`, one task per rank.

Slurm's numbers become the standard environment, output goes to logs/rank-N.log, and this very process is the worker.
Why it ended is left in slurm/marks-ATTEMPT for the job's script, which can't tell it from srun's status: `mistake` by
any rank that stopped on what only the user can mend, `stopped` by rank 0 when all have saved and left.
"""

import os
import resource
import signal
import sys
from pathlib import Path

from common.limits import open_all_files_allowed
from common.mistakes import Mistake
from slurm.network import name_network

MISTAKE, STOPPED = 2, 75
"""Exit statuses of training.worker, which is imported late."""
NAMES = {
    "RANK": "SLURM_PROCID",
    "LOCAL_RANK": "SLURM_LOCALID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_WORLD_SIZE": "SLURM_NTASKS_PER_NODE",
    "NODE_RANK": "SLURM_NODEID",
}
"""What each variable of the standard environment is called by Slurm."""


def main() -> None:
    """Becomes a rank. A run that was asked to stop and has saved ends with status 0: srun would kill its peers else."""
    # The worker listens once it has been imported; until then a signal that means "save" must not kill it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.update({name: os.environ[slurm] for name, slurm in NAMES.items() if slurm in os.environ})
    run_dir = Path(sys.argv[1])
    _redirect(run_dir / "logs" / f"rank-{os.environ['RANK']}.log")
    if warning := open_all_files_allowed(int(os.environ["WORLD_SIZE"])):
        print(warning, file=sys.stderr, flush=True)
    if "TMPDIR" in os.environ:
        Path(os.environ["TMPDIR"]).mkdir(parents=True, exist_ok=True)
    code = _work(run_dir)
    mark(run_dir, code)
    _leave(code)


def _work(run_dir: Path) -> int:
    try:
        os.environ.update(name_network(os.environ))
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        return MISTAKE
    from training import worker  # imports torch, which takes seconds

    return worker.main([str(run_dir)])


def mark(run_dir: Path, code: int) -> None:
    """Leaves a word on why this rank ended with this status of training.worker's, where it is one to act on."""
    folder = run_dir / "slurm" / f"marks-{os.environ['SHARDLINE_ATTEMPT']}"
    name = {MISTAKE: "mistake", STOPPED: "stopped" if os.environ["RANK"] == "0" else ""}.get(code)
    if name and folder.is_dir():  # a later start clears it away
        (folder / name).touch()


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if code == STOPPED else code)


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


if __name__ == "__main__":
    main()
