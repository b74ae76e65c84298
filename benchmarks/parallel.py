"""Two ranks that share layers or rows, against two that share nothing: tokens per second, and bytes sent.

    python -m benchmarks.parallel [--quick] [--check] [--json FILE]

All train the same model in fp32 on the same global batches through the real engine at ZeRO 1, one layout after another
in the same processes, in turns; a figure is the median over rounds. Losses must agree, or there is no result. Bytes are
those that a rank gives to torch's collectives in one step, as a ring sends them, less the gradients between replicas;
they must be those of the plan's formula (training/plan/sent.py), but for the few of the norm. On one machine of few
cores ranks that share layers gain nothing, for they talk where data ranks need not: they are for models too large else.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.start import start
from benchmarks.table import Row, parser, show

RANKS = 2
LENGTH = 512
MODEL = {"num_layers": 4, "d_model": 384, "num_heads": 6, "d_ff": 1024, "tie_embeddings": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {},
    "tensor": {"tensor": 2},
    "tensor, whole rows": {"tensor": 2, "sequence_parallel": False},
    "context": {"context": 2},
}
FEW = 1e-4
"""Share of the bytes that norms and the like may add."""
SAME = 1e-4
"""Nats per target by which losses of layouts may differ."""


def config_of(data: Path, parallel: dict[str, Any]) -> dict[str, Any]:
    """A run of a layout."""
    training = {"steps": 100, "sequence_length": LENGTH, "global_batch_size": 8, "micro_batch_size": 2}
    return {
        "name": "run",
        "tokenizer": {"path": "none"},
        "data": {"path": str(data)},
        "model": MODEL,
        "training": training | {"precision": "fp32", "zero_stage": 1, "threads_per_process": 1, "peak_tflops": 1.0},
        "parallel": parallel,
    }


def rank(data: Path, rounds: int) -> dict[str, Any]:
    """What one of the ranks does: trains all layouts in turns."""
    from benchmarks.sent import SentBytes
    from data_pipeline.manifest import Manifest
    from training.config import RunConfig
    from training.distributed import connect, disconnect, share_cores
    from training.engine import private_extensions
    from training.plan.plan import rows_of
    from training.plan.sent import between_layers, between_rows
    from training.setup import build_engine, vocabulary_size
    from training.step import train_step
    from training.verify.plain import loader_of

    world, manifest = connect(timedelta(minutes=5)), Manifest.load(data)
    share_cores(world, 1)
    results: dict[str, Any] = {}
    engines = {}
    with private_extensions():
        for name, parallel in LAYOUTS.items():
            run = RunConfig.model_validate(config_of(data, parallel))
            own = world.grouped(**run.parallel.axes)
            engine = build_engine(run, vocabulary_size(run, manifest), own)
            loader = loader_of(run, manifest, own.mesh.data.rank, own.mesh.data.size)
            engines[name] = engine, own, loader
            train_step(engine, next(loader), 1e-3, own)
            with SentBytes() as sent:
                loss = train_step(engine, next(loader), 1e-3, own).loss
            passes = engine.num_micro_batches
            planned = passes * (between_layers(run, rows_of(run, None)) + between_rows(run, rows_of(run, None)))
            counted = sum(sent.by_members.values())
            results[name] = {"losses": [loss], "counted": counted, "planned": planned, "seconds": []}
        for turn in range(rounds):
            names = list(LAYOUTS)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                engine, own, loader = engines[name]
                batches = next(loader)
                world.plane.barrier()
                started = time.perf_counter()
                results[name]["losses"].append(train_step(engine, batches, 1e-3, own).loss)
                results[name]["seconds"].append(time.perf_counter() - started)
    disconnect(world)
    return results


def rows_of_table(found: dict[str, Any]) -> list[Row]:
    """The table."""
    tokens = config_of(Path("data"), {})["training"]["global_batch_size"] * LENGTH
    speeds = {name: tokens / statistics.median(each["seconds"]) for name, each in found.items()}
    gradients = found["data"]["counted"]
    rows = [Row(f"{name}: tokens/s", speeds[name], "data", speeds["data"]) for name in LAYOUTS if name != "data"]
    for name in LAYOUTS:
        if name != "data":
            # two ranks to a layer are one replica; two to a row sum their gradients as data ranks do
            counted = found[name]["counted"] - (gradients if name == "context" else 0)
            planned = found[name]["planned"]
            rows.append(Row(f"{name}: MB sent", counted / 1e6, "formula", planned / 1e6))
            if abs(counted / planned - 1) > FEW:
                sys.exit(f"{name}: {counted:.0f} bytes were sent and the formula says {planned:.0f}")
    return rows


def check_losses(found: dict[str, Any]) -> None:
    """Ends the program when layouts do not compute the same thing."""
    for name, each in found.items():
        worst = max(abs(a - b) for a, b in zip(each["losses"], found["data"]["losses"], strict=True))
        if not worst <= SAME:
            sys.exit(f"{name}: its losses differ by {worst:.2g}, so this is no comparison")


def main() -> int:
    """Runs the comparison."""
    if sys.argv[1:2] == ["--rank"]:
        print(json.dumps(rank(Path(sys.argv[2]), int(sys.argv[3]))), flush=True)
        return 0
    args: argparse.Namespace = parser(__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="shardline-bench-") as folder:
        from benchmarks.gpu_step import write_dataset

        data = write_dataset(Path(folder) / "data", 2000)
        rounds = 4 if args.quick else 12
        outputs = start(RANKS, "benchmarks.parallel", "--rank", str(data), str(rounds))
    found = json.loads(outputs[0].splitlines()[-1])
    check_losses(found)
    return show(f"{RANKS} ranks, one thread each, fp32, torch {torch.__version__}", rows_of_table(found), args)


if __name__ == "__main__":
    sys.exit(main())
