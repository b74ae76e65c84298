"""Tokens per second of one rank of our trainer, against plain PyTorch and against Hugging Face Trainer with DeepSpeed.

    python -m benchmarks.train_step [--quick] [--check] [--json FILE]

All train the same model from the same weights on the same batches with the same optimizer settings and number of
threads, in fp32, each in a process of its own (train_peers.py). They take turns step by step, in an order that moves
on every round; a figure is the median over rounds. Losses must agree at every step, or there is no result: to be
faster at something else would win nothing.
MFU is the share of this machine's own matrix product, measured in between, that our steps reach (model/flops.py
counts the operations).
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.table import Row, parser, show
from benchmarks.train_peers import Work
from common.ports import free_port
from data_pipeline.config import TokenizerConfig
from model import flops
from model.kernels.attention import AttentionPattern
from training.hardware import measure_matmul_flops

PEERS = {
    "ours": "shardline",
    "plain": "plain PyTorch loop, AdamW as it comes",
    "plain_fused": "plain PyTorch loop, AdamW(fused=True)",
    "hf": "Hugging Face Trainer + DeepSpeed ZeRO 1",
}
GOALS = {"plain": 1.0, "plain_fused": 1.0, "hf": 1.2}
LOSS_TOLERANCE = 1e-4
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that spin at a barrier take the core from the one they wait for: on a busy machine all stall tenfold."""
MODEL = {"num_layers": 6, "d_model": 384, "num_heads": 6, "num_kv_heads": 2, "d_ff": 1024, "tie_embeddings": True}
VOCAB_SIZE = TokenizerConfig(path="any").vocab_size
NUM_ROWS = 8
LENGTH = 512
NUM_BATCHES = 3
STEPS = 1


class Peer:
    """A process that trains when asked to."""

    def __init__(self, name: str, work: Work):
        self.name, self.log = name, tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.train_peers", name, json.dumps(dataclasses.asdict(work))],
            cwd=Path(__file__).parents[1],
            env=os.environ | WAITING | {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": str(work.threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def train(self, steps: int) -> tuple[float, list[float]]:
        """Seconds that so many steps took, and their losses."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.log.seek(0)
            raise RuntimeError(f"{PEERS[self.name]} ended early:\n{self.log.read()[-4000:]}")
        result = json.loads(answer)
        return result["seconds"], result["losses"]

    def close(self) -> None:
        """Lets the process end."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.log.close()


def measure(work: Work, rounds: int) -> tuple[dict[str, float], float]:
    """Tokens per second of each peer, and the best FLOP/s of a matrix product in between."""
    peers = [Peer(name, work) for name in PEERS]
    tokens = work.num_rows * work.length
    speeds: dict[str, list[float]] = {name: [] for name in PEERS}
    losses: dict[str, list[float]] = {name: [] for name in PEERS}
    peaks: list[float] = []
    try:
        for turn in range(rounds + 1):
            peaks.append(measure_matmul_flops(torch.float32))
            for peer in peers[turn % len(peers) :] + peers[: turn % len(peers)]:
                seconds, values = peer.train(STEPS)
                losses[peer.name] += values
                if turn:  # the first round warms up
                    speeds[peer.name].append(STEPS * tokens / seconds)
            print(f"round {turn} of {rounds}", {n: round(s[-1]) for n, s in speeds.items() if s}, file=sys.stderr)
    finally:
        for peer in peers:
            peer.close()
    check_losses(losses)
    return {name: statistics.median(values) for name, values in speeds.items()}, max(peaks)


def check_losses(losses: dict[str, list[float]]) -> None:
    """Ends the program when peers do not compute the same thing."""
    for name, values in losses.items():
        worst = max(abs(a - b) for a, b in zip(values, losses["ours"], strict=True))
        if not worst <= LOSS_TOLERANCE:
            sys.exit(f"{PEERS[name]}: its losses differ from ours by {worst:.2g}, so this is no comparison")


def rows_of(work: Work, speeds: dict[str, float], peak: float) -> list[Row]:
    """The table."""
    ours = speeds["ours"]
    rows = [Row("training, tokens/s", ours, PEERS[name], speeds[name], goal) for name, goal in GOALS.items()]
    tokens = work.num_rows * work.length
    pairs = AttentionPattern.causal([work.length] * work.num_rows).num_pairs
    per_token = flops.train_flops(work.config, work.vocab_size, flops.Work(tokens, pairs)) / tokens
    figures = {"ours": ours, "the plain loop": max(speeds["plain"], speeds["plain_fused"])}
    for name, speed in figures.items():
        row = Row(f"MFU of {name}, GFLOP/s", speed * per_token / 1e9, "fp32 matmul of this machine", peak / 1e9)
        rows.append(row)
    return rows


def size_of(args: argparse.Namespace) -> tuple[Work, int]:
    """Work, and rounds of it."""
    threads = len(os.sched_getaffinity(0))
    return Work(MODEL, VOCAB_SIZE, NUM_ROWS, LENGTH, NUM_BATCHES, threads), 5 if args.quick else 12


def main() -> int:
    """Runs the comparison."""
    args = parser(__doc__.splitlines()[0]).parse_args()
    work, rounds = size_of(args)
    torch.set_num_threads(work.threads)
    speeds, peak = measure(work, rounds)
    size = flops.num_parameters(work.config, work.vocab_size) / 1e6
    title = f"One rank, {size:.1f} M parameters, {work.num_rows} rows of {work.length}, {work.threads} threads, fp32"
    return show(title, rows_of(work, speeds, peak), args)


if __name__ == "__main__":
    sys.exit(main())
