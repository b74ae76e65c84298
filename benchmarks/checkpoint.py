"""Checkpoints of two real ranks against `dd` with fsync on the same disk: bytes per second of saving and loading.

    python -m benchmarks.checkpoint [--parameters MILLIONS] [--stage N] [--folder DIR] [--quick] [--check] [--json FILE]

A decoder under ZeRO trains one step, so that weights and both moments are there, and is then saved and loaded in turn
with `dd` copying the very bytes of the checkpoint, from the page cache to the disk with fsync, and from the page cache
to nowhere. Every figure is the median of three. Saving counts the copy to the host, writing, checksums, fsync and
renaming; what the step waits for once writing is behind it is the first of these, given in seconds. Loading counts
checking every checksum and filling the ranks' vectors.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.loader import write_documents
from benchmarks.table import Row, parser, show
from common.files import checksum
from data_pipeline.manifest import Manifest
from data_pipeline.reading.batches import Reading
from data_pipeline.reading.loader import Loader
from training.config import RunConfig
from training.distributed import World, connect, disconnect

NUM_RANKS, NUM_ROUNDS = 2, 3
D_MODEL, VOCAB_SIZE, SEQUENCE_LENGTH = 768, 32000, 64
SAVE_GOAL, LOAD_GOAL = 0.4, 0.1


def config_of(data: Path, millions: float, stage: int) -> RunConfig:
    """A decoder of about that many million parameters, embeddings tied."""
    per_layer = 12 * D_MODEL**2
    layers = max(1, round((millions * 1e6 - VOCAB_SIZE * D_MODEL) / per_layer))
    model: dict[str, Any] = {
        "num_layers": layers,
        "d_model": D_MODEL,
        "num_heads": 12,
        "d_ff": 8 * D_MODEL // 3,
        "tie_embeddings": True,
    }
    training: dict[str, Any] = {
        "steps": 1,
        "sequence_length": SEQUENCE_LENGTH,
        "global_batch_size": NUM_RANKS,
        "micro_batch_size": 1,
    }
    training |= {"precision": "fp32", "zero_stage": stage}
    tree: dict[str, Any] = {
        "name": "checkpoint",
        "tokenizer": {"path": "none"},
        "data": {"path": str(data)},
        "model": model,
    }
    return RunConfig.model_validate(tree | {"training": training})


def timed(action: Callable[[], Any], world: World) -> tuple[float, Any]:
    """Seconds that the slowest rank took, and what the action returned."""
    world.max([0])
    start = time.perf_counter()
    result = action()
    return world.max([time.perf_counter() - start])[0], result


def dd(source: list[Path], target: str, *how: str) -> float:
    """Seconds that `dd` takes to copy files one after another."""
    start = time.perf_counter()
    for number, path in enumerate(source):
        command = ["dd", f"if={path}", f"of={target.format(number)}", "bs=8M", *how]
        subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def warm(paths: list[Path]) -> None:
    """Brings files into the page cache, which our own writes go past."""
    for path in paths:
        checksum(path)


def measure(data: Path, folder: Path, millions: float, stage: int, world: World) -> dict[str, Any]:
    """Seconds of each thing on these ranks, and the checkpoint's bytes."""
    from training.setup import build_engine
    from training.state.choosing import choose
    from training.state.identity import RunIdentity, RunState
    from training.state.loading import load
    from training.state.saving import commit
    from training.step import train_step

    config = config_of(data, millions, stage)
    engine = build_engine(config, VOCAB_SIZE, world)
    axis = world.mesh.data
    objective, manifest = config.objective, Manifest.load(data)
    reading = Reading(
        str(data), manifest, objective, "causal", SEQUENCE_LENGTH, 1, 1, rank=axis.rank, world_size=axis.size
    )
    with Loader(reading, global_batch_size=NUM_RANKS) as loader:
        train_step(engine, next(loader), 1e-3, world)
    identity = RunIdentity(world.size, stage, "fp32", "", "", {}, {})
    seconds: dict[str, list[float]] = {
        name: [] for name in ("snapshot", "save", "dd write", "check", "load", "dd read")
    }
    size = 0
    for step in range(NUM_ROUNDS):
        took, snapshot = timed(engine.snapshot, world)
        seconds["snapshot"].append(took)
        written, path = timed(lambda: commit(snapshot, folder, RunState(step), identity, world), world)  # noqa: B023
        seconds["save"].append(took + written)
        parts = sorted(path.iterdir())
        size = sum(part.stat().st_size for part in parts)
        if world.is_main:
            warm(parts)
            seconds["dd write"].append(dd(parts, f"{folder}/copy-{{}}", "conv=fsync"))
            seconds["dd read"].append(dd(parts, "/dev/null"))
        took, choice = timed(lambda: choose(folder, world), world)
        assert choice.checkpoint is not None
        seconds["check"].append(took)
        seconds["load"].append(took + timed(lambda: load(engine, choice.checkpoint), world)[0])  # noqa: B023
        if world.is_main:
            shutil.rmtree(path)
    return {"bytes": size, **{name: statistics.median(each or [0.0]) for name, each in seconds.items()}}


def as_rank(rank: int, port: int, data: Path, folder: Path, millions: float, stage: int) -> None:
    """One of the ranks; rank 0 leaves the figures in the folder."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": NUM_RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    world = connect(timedelta(minutes=10))
    figures = measure(data, folder, millions, stage, world)
    if world.is_main:
        (folder / "figures.json").write_text(json.dumps(figures))
    disconnect(world)


def rows_of(figures: dict[str, Any]) -> list[Row]:
    """The comparison."""
    gigabytes = figures["bytes"] / 1e9
    return [
        Row("save, GB/s", gigabytes / figures["save"], "dd fsync", gigabytes / figures["dd write"], SAVE_GOAL),
        Row("check + load, GB/s", gigabytes / figures["load"], "dd to null", gigabytes / figures["dd read"], LOAD_GOAL),
        Row("step waits, s", figures["snapshot"], "whole save", figures["save"], lower_is_better=True),
    ]


def main() -> int:
    """Measures and shows."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.add_argument("--parameters", type=float, default=100, metavar="MILLIONS", help="size of the model")
    arguments.add_argument("--stage", type=int, default=1, choices=range(4), help="ZeRO stage")
    arguments.add_argument("--folder", type=Path, help="where to write; the temporary folder if empty")
    args = arguments.parse_args()
    millions = min(args.parameters, 35) if args.quick else args.parameters
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        data = write_documents(folder / "data", 100_000)
        port = 20_000 + os.getpid() % 20_000
        torch.multiprocessing.start_processes(  # type: ignore[attr-defined]
            as_rank, (port, data, folder, millions, args.stage), NUM_RANKS, start_method="spawn"
        )
        figures = json.loads((folder / "figures.json").read_text())
    title = f"{figures['bytes'] / 1e9:.2f} GB of state, {NUM_RANKS} ranks, ZeRO {args.stage}"
    return show(title, rows_of(figures), args)


if __name__ == "__main__":
    sys.exit(main())
