"""An all-reduce over all GPUs of all nodes (their CPUs where there is none), right and timed: for the health check.

check(...) on each node -> one process for each GPU: `python -P -m slurm.all_reduce DEVICE BYTES TIMEOUT` -> seconds
"""

import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from slurm.network import name_network

REPEATS = 5
WRONG = "wrong sums"
POLL_SECONDS = 0.05


class Failed(Exception):
    """The all-reduce did not come about, or its sums are wrong; the message says which."""


def over_all_nodes(num_gpus: int, num_bytes: int, port: int, patience: float) -> float:
    """Seconds of the fastest all-reduce of a buffer over `num_gpus` GPUs (0: one CPU process) of each node of the step.

    Raises Failed.
    """
    node, num_nodes, local_size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), num_gpus or 1
    shared = {**os.environ, **name_network(os.environ), "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for index in range(local_size):
            numbers = {"RANK": node * local_size + index, "WORLD_SIZE": num_nodes * local_size, "LOCAL_RANK": index}
            words = [f"cuda:{index}" if num_gpus else "cpu", str(num_bytes), str(patience)]
            with Path(folder, str(index)).open("wb") as said:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "slurm.all_reduce", *words],
                    env={**shared, **{name: str(number) for name, number in numbers.items()}},
                    stdout=said,
                    stderr=subprocess.STDOUT,
                )
            processes.append(process)
        _wait(processes, time.monotonic() + patience)
        answers = [Path(folder, str(index)).read_text(errors="replace").strip() for index in range(local_size)]
    for index, (process, answer) in enumerate(zip(processes, answers, strict=True)):
        if process.returncode > 0:  # those that were ended on account of another have less than 0
            last = answer.splitlines()[-1][:200] if answer else f"exit code {process.returncode}"
            raise Failed(f"GPU {index}: {last}" if num_gpus else last)
    if any(process.returncode for process in processes):
        raise Failed(f"it hangs for {patience:.0f} s")
    return max(float(answer.splitlines()[-1]) for answer in answers)


def _wait(processes: list[subprocess.Popen], deadline: float) -> None:
    """Until all have ended; when one fails or time is up, the others are ended."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes) or time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(POLL_SECONDS)


def main() -> int:
    """One process of the all-reduce: prints the seconds of the fastest, or why there is none as the last line."""
    device, num_bytes, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    try:
        print(_seconds(device, num_bytes // 4, patience))
    except (RuntimeError, ValueError) as error:
        print(str(error).splitlines()[0])
        return 1
    return 0


def _seconds(device: str, num_floats: int, patience: float) -> float:
    import torch
    import torch.distributed as dist

    if device != "cpu":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=datetime.timedelta(seconds=patience))
    best = float("inf")
    for _ in range(REPEATS):
        buffer = torch.ones(num_floats, device=device)
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(buffer)
        if bool((buffer != dist.get_world_size()).any()):
            raise ValueError(WRONG)
        best = min(best, time.perf_counter() - started)
    dist.destroy_process_group()
    return best


if __name__ == "__main__":
    raise SystemExit(main())
