"""One rank of a Slurm job: `srun ... python -P -m slurm.rank RUN_DIR [--verify]`, one task per rank.

Slurm's numbers become the standard environment, output goes to logs/rank-N.log, and this very process is the worker,
or with --verify the proof before it. Why it ended is left in slurm/marks-ATTEMPT for the job's script, which can't tell
it from srun's status: `mistake` by any rank that stopped on what only the user can mend, `stopped` by rank 0 when all
have saved and left, `verified` or `differs` by rank 0 when the proof is done. Whoever finds a rank that hangs, or one
that computes otherwise than the others, leaves `hang`, `hang-NODE` or `corrupt-NODE` there (NODE as Slurm calls it): a
node that is corrupt is left out of the job at once, a hang is remembered against the node.
"""

import os
import resource
import signal
import sys
from pathlib import Path

from common.limits import open_all_files_allowed
from common.mistakes import Mistake
from slurm.network import name_network
from training.marks import leave_marks

MISTAKE, STOPPED, DIFFERS = 2, 75, 78
"""Exit statuses of training.worker and training.verify.job, which are imported late."""
VERIFY = "--verify"
NAMES = {
    "RANK": "SLURM_PROCID",
    "LOCAL_RANK": "SLURM_LOCALID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_WORLD_SIZE": "SLURM_NTASKS_PER_NODE",
    "NODE_RANK": "SLURM_NODEID",
}
"""What each variable of the standard environment is called by Slurm."""


def main() -> None:
    """Becomes a rank. One whose peers are still to leave in order ends with status 0: srun would kill them else."""
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
    verifies = VERIFY in sys.argv[2:]
    code = _work(run_dir, verifies)
    mark(run_dir, code, verifies)
    _leave(code)


def _work(run_dir: Path, verifies: bool) -> int:
    try:
        os.environ.update(name_network(os.environ))
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        return MISTAKE
    if verifies:
        from training.verify import job  # imports torch, which takes seconds

        return job.main([str(run_dir)])
    from training import worker

    return worker.main([str(run_dir)])


def mark(run_dir: Path, code: int, verifies: bool = False) -> None:
    """Leaves a word on why this rank ended with this status, where it is one to act on."""
    of_main = {0: "verified", DIFFERS: "differs"} if verifies else {STOPPED: "stopped"}
    name = "mistake" if code == MISTAKE else of_main.get(code, "") if os.environ["RANK"] == "0" else ""
    if name:
        leave_marks(run_dir, os.environ["SHARDLINE_ATTEMPT"], name)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if code in (STOPPED, DIFFERS) else code)


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


if __name__ == "__main__":
    main()
