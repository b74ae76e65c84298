"""Memory that the plan says a rank will take, against what real ranks take while they train on this machine.

    python -m benchmarks.plan_memory [--quick] [--check] [--only WORD] [--json FILE] [--write]

One or two ranks (CPU, gloo, one thread each) build each model through the real engine, train two steps and forget it.
Measured is the most memory that was resident in rank 0 during the second step, less what was resident before the model
was made, when everything is imported, peers are connected, the batches are read and a tiny model of the same kind has
been trained in the same way, so that every library is loaded. Planned is what training/plan says of that device: the
same counting as for GPUs, with the kernels, the chunk of logits and the buckets that CPUs have, and what DeepSpeed
offloads to the host, which is the same memory here. Tensors are mapped one by one (MALLOC_MMAP_THRESHOLD_), so that
the C library keeps nothing of those that are freed; `--keeping` measures with the setting of training instead, where
it keeps them.

`--write` keeps the figures in benchmarks/measured_memory.json, from which docs/plan.md is written.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.resident import resident
from benchmarks.start import start, wait_for_memory

MEASURED = Path(__file__).with_name("measured_memory.json")
GOALS = {"median": 0.05, "worst": 0.12}
KEPT = ("name", "peak", "tokens", "read", "targets")
"""What of a row is written: bytes at most, and what its batch held."""
VOCAB_SIZE = 8192
SHORTEST, LONGEST = 250, 700
"""Tokens of documents."""
MODEL = {"num_layers": 4, "d_model": 512, "num_heads": 8, "d_ff": 1408}
TRAINING = {
    "steps": 10,
    "sequence_length": 768,
    "micro_batch_size": 2,
    "global_batch_size": 4,
    "precision": "fp32",
    "zero_stage": 1,
    "threads_per_process": 1,
    "peak_tflops": 1.0,
}
TINY = {"num_layers": 1, "d_model": 64, "num_heads": 4, "d_ff": 64}
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
PATIENCE = 3600.0
ROOM = 5e9
"""Bytes that the largest run takes with its imports."""
BF16 = {"precision": "bf16", "micro_batch_size": 1, "sequence_length": 512}
"""Few tokens and layers: a CPU without units for bf16 is slow at it."""
SHALLOW = {"num_layers": 2}
OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
CUT_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
PREFIX, MASKED = {"name": "prefix_lm"}, {"name": "masked_lm"}
CASES: dict[str, dict[str, Any]] = {
    "ZeRO 0": {"training": {"zero_stage": 0}},
    "ZeRO 1": {},
    "ZeRO 1, one pass a step": {"training": {"global_batch_size": 2}},
    "ZeRO 0, two ranks": {"ranks": 2, "training": {"zero_stage": 0}},
    "ZeRO 1, two ranks": {"ranks": 2},
    "ZeRO 2, two ranks": {"ranks": 2, "training": {"zero_stage": 2}},
    "ZeRO 3, two ranks": {"ranks": 2, "training": {"zero_stage": 3}},
    "ZeRO 3, two ranks, everything cut": {"ranks": 2, "training": {"zero_stage": 3, "deepspeed": CUT_ALL}},
    "ZeRO 2, two ranks, optimizer offloaded": {"ranks": 2, "training": {"zero_stage": 2, "deepspeed": OFFLOAD}},
    "tensor 2": {"ranks": 2, "parallel": {"tensor": 2}},
    "tensor 2, whole rows": {"ranks": 2, "parallel": {"tensor": 2, "sequence_parallel": False}},
    "context 2, ZeRO 2": {"ranks": 2, "parallel": {"context": 2}, "training": {"zero_stage": 2}},
    "blocks recomputed": {"model": {"activation_checkpointing": "full"}},
    "every third block recomputed": {
        "model": {"activation_checkpointing": "full", "activation_checkpointing_interval": 3}
    },
    "attention recomputed": {"model": {"activation_checkpointing": "attention"}},
    "vocabulary of 65,536": {"model": {"vocab_size": 65536, "num_layers": 2, "tie_embeddings": True}},
    "bf16, ZeRO 1": {"model": SHALLOW, "training": BF16 | {"global_batch_size": 1}},
    "bf16, ZeRO 2, two ranks": {
        "ranks": 2,
        "model": SHALLOW,
        "training": BF16 | {"zero_stage": 2, "global_batch_size": 4},
    },
    "bf16, ZeRO 3, two ranks": {
        "ranks": 2,
        "model": SHALLOW,
        "training": BF16 | {"zero_stage": 3, "global_batch_size": 2},
    },
    "prefix": {"model": {"shape": "prefix"}, "objective": PREFIX},
    "encoder, masked": {"model": {"shape": "encoder"}, "objective": MASKED},
    "encoder and decoder": {"model": {"shape": "encdec", "num_layers": 3}, "objective": PREFIX},
    "biases of T5, grouped heads": {"model": {"positions": "t5_bias", "num_kv_heads": 2}},
    "layernorm, gelu": {"model": {"norm": "layernorm", "activation": "gelu", "bias": True, "d_ff": 2048}},
}


def write_dataset(folder: Path) -> Path:
    """Documents of 250 to 700 tokens."""
    from benchmarks.synthetic import save_documents

    rng = np.random.default_rng(0)
    lengths = rng.integers(SHORTEST, LONGEST + 1, 400)
    tokens = rng.integers(10, VOCAB_SIZE, lengths.sum())
    return save_documents(folder, tokens, lengths, VOCAB_SIZE)


def config_of(name: str, data: str) -> dict[str, Any]:
    """The config of a case."""
    case = CASES[name]
    return {
        "name": "run",
        "tokenizer": {"path": "none"},
        "data": {"path": data},
        "model": MODEL | case.get("model", {}),
        "objective": case.get("objective", {"name": "next_token"}),
        "training": TRAINING | case.get("training", {}),
        "parallel": case.get("parallel", {}),
    }


def rank(data: str, names: list[str], keeps: bool) -> list[dict[str, Any]]:
    """What one rank does, case by case."""
    from data_pipeline.manifest import Manifest
    from training.distributed import connect, disconnect, share_cores
    from training.engine import private_extensions
    from training.hardware import keep_freed_memory

    world, manifest = connect(timedelta(minutes=10)), Manifest.load(data)
    share_cores(world, 1)
    if keeps:
        keep_freed_memory()
    rows = []
    with private_extensions():
        for name in names:
            tree = config_of(name, data)
            train(tree | {"model": tree["model"] | TINY}, world, manifest)
            gc.collect()
            began = time.perf_counter()
            found = train(tree, world, manifest)
            gc.collect()
            left = resident("VmRSS") - found.pop("before")
            rows.append({"name": name, **found, "left": left, "seconds": time.perf_counter() - began})
            if world.is_main:
                print(name, {key: round(value) for key, value in rows[-1].items() if key != "name"}, file=sys.stderr)
    disconnect(world)
    return rows


def train(tree: dict[str, Any], world: Any, manifest: Any) -> dict[str, Any]:
    """Builds a model, trains two steps, and says what it took and what its batches held."""
    from training.config import RunConfig
    from training.setup import build_engine, vocabulary_size
    from training.step import train_step
    from training.verify.plain import loader_of

    run = RunConfig.model_validate(tree)
    own = world.grouped(**run.parallel.axes)
    loader = loader_of(run, manifest, own.mesh.data.rank, own.mesh.data.size)
    batches = [next(loader) for _ in range(2)]
    loader.close()
    before = resident("VmRSS")
    engine = build_engine(run, vocabulary_size(run, manifest), own)
    train_step(engine, batches[0], 1e-3, own)
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
    train_step(engine, batches[1], 1e-3, own)
    peak = resident("VmHWM") - before
    engine.close()
    batch = max(batches[1], key=lambda each: each.num_targets)
    read = len(batch.encoder.tokens) if batch.encoder else 0
    targets = batch.num_targets / len(batch.tokens)
    return {"before": before, "peak": peak, "tokens": len(batch.tokens), "read": read, "targets": targets}


def planned(name: str, found: dict[str, Any]) -> tuple[int, str]:
    """Bytes that the plan says of the same rank, on the device and what is offloaded to its host, and the moment."""
    from training.config import RunConfig
    from training.plan.activations import Rows
    from training.plan.memory import memory

    run = RunConfig.model_validate(config_of(name, "none"))
    document = (SHORTEST + LONGEST) // (4 if found["read"] else 2)  # the encoder reads half of each
    rows = Rows(found["tokens"], found["read"], document, found["targets"])
    said = memory(run, run.model.vocab_size or VOCAB_SIZE, CASES[name].get("ranks", 1), rows, "cpu")
    moments = said.moments_of_a_step
    return said.peak + said.host, max(moments, key=moments.__getitem__)


def measure(names: list[str], keeps: bool) -> list[dict[str, Any]]:
    """Runs the cases of one rank in one process, those of two in two."""
    rows: list[dict[str, Any]] = []
    if not keeps:
        os.environ.update(MAPPED)
    with tempfile.TemporaryDirectory(prefix="shardline-bench-") as folder:
        data = str(write_dataset(Path(folder)))
        for ranks in (1, 2):
            mine = [name for name in names if CASES[name].get("ranks", 1) == ranks]
            if mine:
                wait_for_memory(ROOM)
                command = ["benchmarks.plan_memory", "--rank", data, json.dumps(mine), str(int(keeps))]
                outputs = start(ranks, *command, patience=PATIENCE)
                rows += json.loads(outputs[0].splitlines()[-1])
    return rows


def errors_of(rows: list[dict[str, Any]]) -> list[float]:
    """Of every row, planned too much above 0."""
    return [planned(row["name"], row)[0] / row["peak"] - 1 for row in rows]


def main() -> int:
    """Measures, or as one of the ranks trains."""
    if sys.argv[1:2] == ["--rank"]:
        print(json.dumps(rank(sys.argv[2], json.loads(sys.argv[3]), bool(int(sys.argv[4])))), flush=True)
        return 0
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    options.add_argument("--quick", action="store_true", help="only what one rank can do")
    options.add_argument("--only", default="", metavar="WORD", help="only the rows with this word in their name")
    options.add_argument("--keeping", action="store_true", help="as in training, where freed memory is kept")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options.add_argument("--write", action="store_true", help=f"write the rows to {MEASURED.name}")
    args = options.parse_args()
    names = [name for name in CASES if args.only in name and not (args.quick and "ranks" in CASES[name])]
    rows = measure(names, args.keeping)
    errors = errors_of(rows)
    table = Table(title="Memory of a rank that trains, CPU", title_justify="left")
    for column in ("run", "measured MB", "planned MB", "off by", "most at"):
        table.add_column(column, justify="left" if column in ("run", "most at") else "right")
    for row, error in zip(rows, errors, strict=True):
        size, moment = planned(row["name"], row)
        table.add_row(row["name"], f"{row['peak'] / 1e6:.0f}", f"{size / 1e6:.0f}", f"{error:+.1%}", moment)
    Console(width=140).print(table)
    median, worst = statistics.median(map(abs, errors)), max(map(abs, errors))
    print(f"median error {median:.1%}, worst {worst:.1%}; goals {GOALS['median']:.0%}, {GOALS['worst']:.0%}")
    for file in [args.json] * bool(args.json) + [MEASURED] * args.write:
        kept = [json.dumps({key: row[key] for key in KEPT}) for row in rows]
        file.write_text("[\n" + ",\n".join(kept) + "\n]\n")
    return int(args.check and (median > GOALS["median"] or worst > GOALS["worst"]))


if __name__ == "__main__":
    sys.exit(main())
