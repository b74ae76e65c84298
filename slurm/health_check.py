"""Is this node fit to train? One task per node: `python -P -m slurm.health_check VERDICTS ...`, before ranks start.

VERDICTS/<node> gets one line: `ok`, or what is wrong, or would be if nothing more came of it. Basic: GPUs counted, ECC,
memory, disk; then all nodes meet at the first one and compare clocks. Full: each GPU (or the CPU) multiplies matrices,
right and fast enough; then all GPUs of all nodes reduce a tensor, right and fast enough.
"""

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from common.files import write_whole
from common.mistakes import Mistake
from slurm import all_reduce, meeting

QUERY = "index,ecc.errors.uncorrected.volatile.total,retired_pages.pending"
MATRIX, BUFFER_BYTES, REPEATS = 4096, 64 << 20, 5
CPU_MATRIX, CPU_BUFFER_BYTES = 512, 4 << 20
UNREACHED = "no way to the first node"
"""Verdict of a node that could not reach the first one; the job blames that one when all others say so."""


class Unfit(Exception):
    """Something about this node is not as it must be; the message says what."""


def main(arguments: list[str] | None = None) -> int:
    """Checks this node and writes its verdict; exit status 0 even when unfit, as the job reads the verdicts."""
    options = _parser().parse_args(arguments)
    name = os.environ.get("SLURMD_NODENAME") or os.uname().nodename

    def note(verdict: str) -> None:
        write_whole(options.verdicts / name, f"{' '.join(verdict.split())}\n".encode())

    verdict = _first_fault(checks(options))
    met = _first_fault([lambda: meet(options, verdict, note)])  # an unfit one goes too: the others need not wait for it
    verdict = met if verdict == "ok" else verdict
    note(verdict)
    if verdict != "ok":
        print(f"{name}: {verdict}", flush=True)
    return 0


def _first_fault(checks: Iterable[Callable[[], None]]) -> str:
    try:
        for check in checks:
            check()
    except Unfit as found:
        return str(found)
    return "ok"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Is this node fit to train?")
    parser.add_argument("verdicts", type=Path, help="folder for one line per node")
    parser.add_argument("--level", choices=("basic", "full"), default="basic")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs there must be")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp"), help="folder that must have room")
    parser.add_argument("--min-memory-gb", type=float, default=0.0)
    parser.add_argument("--min-disk-gb", type=float, default=0.0)
    parser.add_argument("--max-clock-skew", type=float, default=30.0, help="seconds")
    parser.add_argument("--min-matmul-tflops", type=float, default=0.0)
    parser.add_argument("--min-allreduce", type=float, default=0.0, help="GB/s")
    parser.add_argument("--port", type=int, default=29400, help="where the nodes meet")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for the nodes to meet")
    return parser


def checks(options: argparse.Namespace) -> Iterator[Callable[[], None]]:
    """What is to be checked, cheap things first; each raises Unfit."""
    yield lambda: check_memory(Path("/proc/meminfo").read_text(), options.min_memory_gb)
    yield lambda: check_disk(options.scratch, options.min_disk_gb)
    yield lambda: _check_injected(os.environ.get("SHARDLINE_BROKEN_NODE"))
    if options.gpus:
        yield lambda: check_gpus(_nvidia_smi(), options.gpus)
    if options.level == "full":
        yield lambda: check_matmul(options.gpus, options.min_matmul_tflops)


def check_clock(clock: meeting.Clock, most: float) -> None:
    """Against the most seconds a node's clock may differ from the first node's, by what is sure of it."""
    if abs(clock.ahead) - clock.error > most:
        raise Unfit(f"the clock differs from the first node's by {clock.ahead:+.0f} s")


def check_memory(meminfo: str, least: float) -> None:
    """Free memory by the text of /proc/meminfo against `least` GB."""
    kilobytes = next(int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    if kilobytes * 1024 / 1e9 < least:
        raise Unfit(f"{kilobytes * 1024 / 1e9:.1f} GB of memory free, {least:g} wanted")


def check_disk(folder: Path, least: float) -> None:
    """Free space in `folder` against `least` GB; the folder must take a file."""
    probe = folder / f".shardline-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        raise Unfit(f"{folder}: {error.strerror}") from None
    if free < least:
        raise Unfit(f"{folder}: {free:.1f} GB free, {least:g} wanted")


def _check_injected(name: str | None) -> None:
    if name and name == os.environ.get("SLURMD_NODENAME"):
        raise Unfit("said to be broken by SHARDLINE_BROKEN_NODE")


def _nvidia_smi() -> str:
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise Unfit("nvidia-smi is not installed") from None
    except subprocess.TimeoutExpired:
        raise Unfit("nvidia-smi hangs") from None
    if done.returncode:
        raise Unfit(f"nvidia-smi fails: {(done.stdout + done.stderr).strip().splitlines()[-1:]}")
    return done.stdout


def check_gpus(listing: str, wanted: int) -> None:
    """Counts GPUs in nvidia-smi's lines of `index, uncorrected ECC errors, retirement pending`, and looks at both."""
    lines = [[field.strip() for field in line.split(",")] for line in listing.splitlines() if line.strip()]
    if len(lines) != wanted:
        raise Unfit(f"{len(lines)} GPUs, {wanted} wanted")
    for index, errors, pending in lines:
        if errors.isdigit() and int(errors) > 0:
            raise Unfit(f"GPU {index}: {errors} uncorrected memory errors")
        if pending == "Yes":
            raise Unfit(f"GPU {index}: pages wait to be retired; it needs a reset")


def check_matmul(num_gpus: int, least: float) -> None:
    """Multiplies matrices of ones on every GPU (the CPU when there is none) and times it against `least` TFLOP/s."""
    import torch

    for device in [f"cuda:{index}" for index in range(num_gpus)] or ["cpu"]:
        size, dtype = (MATRIX, torch.bfloat16) if num_gpus else (CPU_MATRIX, torch.float32)
        wait = torch.cuda.synchronize if num_gpus else (lambda _: None)
        ones = torch.ones(size, size, device=device, dtype=dtype)
        product = ones @ ones
        best = float("inf")
        for _ in range(REPEATS):
            wait(device)
            started = time.perf_counter()
            product = ones @ ones
            wait(device)
            best = min(best, time.perf_counter() - started)
        if not bool((product == size).all()):
            raise Unfit(f"{device}: a product of matrices is wrong")
        if 2 * size**3 / best / 1e12 < least:
            raise Unfit(f"{device}: {2 * size**3 / best / 1e12:.0f} TFLOP/s in a matrix product, {least:g} wanted")


def meet(options: argparse.Namespace, verdict: str, note: Callable[[str], None]) -> None:
    """Meets the other nodes at the first one; raises Unfit when that shows something wrong with this one.

    A node that is unfit or did not come is named by its own verdict or its silence, so the others just go home.
    `note` takes what is to be thought of this node if nothing more comes of it.
    """
    node, num_nodes, fit = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), verdict == "ok"
    if node == 0:
        note(verdict)
        all_fit = meeting.host(options.port, num_nodes, fit, options.timeout)
    else:
        note(verdict if not fit else UNREACHED)
        all_fit = _visit(options, verdict, note)
    if options.level == "full" and all_fit:
        note("the all-reduce over the nodes hangs")
        check_allreduce(options)


def _visit(options: argparse.Namespace, verdict: str, note: Callable[[str], None]) -> bool:
    try:
        guest = meeting.Guest(os.environ["MASTER_ADDR"], options.port, options.timeout)
        clock = guest.clock()
        wrong = _first_fault([lambda: check_clock(clock, options.max_clock_skew)])
        verdict = wrong if verdict == "ok" else verdict
        note(verdict)
        all_fit = guest.all_fit(verdict == "ok")
        guest.close()
    except meeting.Unreached:
        raise Unfit(UNREACHED if verdict == "ok" else verdict) from None
    if verdict != "ok":
        raise Unfit(verdict)
    return all_fit


def check_allreduce(options: argparse.Namespace) -> None:
    """Sums a buffer over all GPUs of all nodes and times it against `min_allreduce` GB/s."""
    num_bytes = BUFFER_BYTES if options.gpus else CPU_BUFFER_BYTES
    try:
        seconds = all_reduce.over_all_nodes(options.gpus, num_bytes, options.port + 1, options.timeout)
    except (all_reduce.Failed, Mistake) as failure:
        raise Unfit(f"no all-reduce over the nodes: {failure}") from None
    speed = num_bytes / seconds / 1e9
    if speed < options.min_allreduce:
        raise Unfit(f"all-reduce over the nodes at {speed:.2f} GB/s, {options.min_allreduce:g} wanted")


if __name__ == "__main__":
    raise SystemExit(main())
