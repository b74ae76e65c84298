"""One rank of a local launch: sends its output to logs/rank-N.log, then becomes the worker."""

import ctypes
import os
import signal
import sys
from pathlib import Path

from common.limits import open_all_files_allowed

PYTHON = (sys.executable, "-P")
"""How to start Python so that it does not import from the working folder: users keep a `model.py` there."""
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal a process gets when its parent dies; it stays set across exec."""
_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # looked up now: after a fork, looking things up can deadlock


def end_with_parent() -> None:
    """Asks Linux to send this process SIGTERM when its parent dies, so that no rank outlives its launch unseen.

    Other systems know no such thing; there, ranks go on when their launch is killed with SIGKILL.
    """
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Redirects standard output and error, then runs `training.worker` in this very process."""
    end_with_parent()
    run_dir = sys.argv[1]
    log = Path(run_dir) / "logs" / f"rank-{os.environ['RANK']}.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if warning := open_all_files_allowed(int(os.environ["WORLD_SIZE"])):
        print(warning, file=sys.stderr, flush=True)
    os.execv(sys.executable, [*PYTHON, "-m", "training.worker", run_dir])


if __name__ == "__main__":
    main()
