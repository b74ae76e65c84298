"""What training notices of a save: of two real ranks, behind the steps and in front of them, and against `dd`.

    python -m benchmarks.save [--parameters MILLIONS] [--folder DIR] [--quick] [--check] [--json FILE]

A decoder of one layer with a large table of learned positions trains under ZeRO 1 and then 2: many bytes to save for
next to nothing to compute. Still, a step that averages and updates so many weights takes as long here as writing them
at the disk's speed, and file systems that hundreds of nodes share are slower. So a round has three saves: one at full
speed, which is held against `dd conv=fsync` of the very files from the page cache to the same disk, and two on a disk
slowed to where a save lasts six steps: behind 20 steps, and with steps waiting for it. Every ratio is a median of
ratios within a round, so that a machine whose speed drifts is held against itself.

    stall       seconds that steps wait for a save behind them, against one that they wait for
    commit      bytes per second of a save that has the machine for itself, copies left out, against dd
    throughput  20 steps with a save behind them, against 20 without; both at their end with nothing left to write
"""

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint import NUM_RANKS
from benchmarks.loader import write_documents
from benchmarks.table import Row, parser, show
from common.ports import free_port
from training.config import RunConfig
from training.distributed import connect, disconnect

INTERVAL, ROUNDS, QUICK_ROUNDS = 20, 5, 2
D_MODEL, VOCAB_SIZE, SEQUENCE_LENGTH = 64, 32000, 32
STALL_GOAL, COMMIT_GOAL, THROUGHPUT_GOAL, LASTS_GOAL = 10.0, 0.8, 0.95, 5.0
LASTS = 6.0
"""Steps that a save lasts on the slowed disk."""


def config_of(data: Path, millions: float, stage: int) -> RunConfig:
    """A decoder of one layer, and as many positions as make so many million parameters."""
    model: dict[str, Any] = {"num_layers": 1, "d_model": D_MODEL, "num_heads": 4, "d_ff": D_MODEL}
    model |= {"tie_embeddings": True, "vocab_size": VOCAB_SIZE, "positions": "learned"}
    model |= {"max_positions": max(SEQUENCE_LENGTH, round(millions * 1e6 / D_MODEL) - VOCAB_SIZE)}
    training: dict[str, Any] = {"steps": 10**6, "sequence_length": SEQUENCE_LENGTH, "global_batch_size": NUM_RANKS}
    training |= {"precision": "fp32", "zero_stage": stage}
    tree: dict[str, Any] = {"name": "save", "tokenizer": {"path": "none"}, "data": {"path": str(data)}, "model": model}
    checkpoint: dict[str, Any] = {"interval_steps": INTERVAL, "keep": 1}
    return RunConfig.model_validate(tree | {"training": training, "checkpoint": checkpoint})


def as_rank(number: int, port: int, data: Path, folder: Path, millions: float, stage: int, rounds: int) -> None:
    """One of the ranks; rank 0 leaves the figures of each round in the folder."""
    from benchmarks.save_rank import Rank, one_round

    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": NUM_RANKS, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in (place | {"MASTER_PORT": port}).items()}
    torch.set_num_threads(1)
    world = connect(timedelta(minutes=10))
    rank = Rank(config_of(data, millions, stage), folder, world)
    rank.train(3)
    rank.train_and_save(1, "awaited")  # asks for the memory of copies
    figures = []
    for number in range(rounds):
        figures.append(one_round(rank, LASTS))
        if world.is_main:
            print(f"round {number + 1} of {rounds}, ZeRO {stage}", figures[-1], file=sys.stderr)
    rank.close()
    if world.is_main:
        _, *saves = events_of(folder)
        for each, full, behind, awaited in zip(figures, saves[::3], saves[1::3], saves[2::3], strict=True):
            each |= {
                "full": full["seconds"],
                "stalled": behind["stalled_seconds"],
                "awaited": awaited["seconds"],
                "lasted": behind["seconds"],
            }
        (folder / "figures.json").write_text(json.dumps(figures))
    disconnect(world)


def events_of(folder: Path) -> list[dict[str, Any]]:
    """Events of saves, in their order."""
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == "save"]


def rows_of(rounds: list[dict[str, float]], stage: int) -> list[Row]:
    """The comparison: medians, and peers' figures such that ratios are medians of ratios within rounds."""

    def median(of: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(of, rounds))

    step, stall = median(lambda each: each["never"] / INTERVAL), median(lambda each: each["stalled"])
    every = median(lambda each: INTERVAL / each["every"])
    speed = median(lambda each: each["bytes"] / 1e9 / (each["full"] - each["copied"]))
    against_awaited = median(lambda each: each["awaited"] / each["stalled"])
    against_full = median(lambda each: each["full"] / each["stalled"])
    against_dd = median(lambda each: each["dd"] / (each["full"] - each["copied"]))
    against_none = median(lambda each: each["never"] / each["every"])
    lasts = median(lambda each: each["lasted"] / (each["never"] / INTERVAL))
    name = f"ZeRO {stage}: "
    return [
        Row(f"{name}stall, s", stall, "save that steps wait for", stall * against_awaited, STALL_GOAL, True),
        Row(f"{name}commit, GB/s", speed, "dd conv=fsync", speed / against_dd, COMMIT_GOAL),
        Row(f"{name}steps/s, a save every {INTERVAL}", every, "no save", every / against_none, THROUGHPUT_GOAL),
        Row(f"{name}that save lasts, s", step * lasts, "a step", step, LASTS_GOAL),
        Row(f"{name}stall, s", stall, "save at full speed", stall * against_full, lower_is_better=True),
    ]


def main() -> int:
    """Measures and shows."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--parameters", type=float, default=60, metavar="MILLIONS", help="size of the model")
    arguments.add_argument("--folder", type=Path, help="where to write; the temporary folder if empty")
    args = arguments.parse_args()
    rows: list[Row] = []
    size = 0.0
    for stage in (1, 2):
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            data = write_documents(folder / "data", 100_000)
            how = (free_port(), data, folder, args.parameters, stage, QUICK_ROUNDS if args.quick else ROUNDS)
            torch.multiprocessing.start_processes(as_rank, how, NUM_RANKS, start_method="spawn")  # type: ignore[attr-defined]
            rounds = json.loads((folder / "figures.json").read_text())
        rows += rows_of(rounds, stage)
        size = rounds[0]["bytes"] / 1e9
    title = f"{args.parameters:g} M parameters, {size:.2f} GB to save, {NUM_RANKS} ranks of one thread, fp32"
    return show(title, rows, args)


if __name__ == "__main__":
    sys.exit(main())
