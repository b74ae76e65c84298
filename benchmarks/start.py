"""The start of a rank: host memory and seconds until it could train, and file-system calls by size of the dataset.

    python -m benchmarks.start [--quick] [--check] [--json FILE]

Memory: real ranks (start_rank.py) of a model of 418 M parameters start in bf16 at ZeRO 1 and 3, on 2 and 4 ranks, new
(weights drawn) and resumed from a checkpoint that one rank wrote. A figure is the highest resident memory of any rank
above what its imports take. It is held against what the rank will hold when it trains, R ranks, bytes per parameter:

    weights to compute with   2, at ZeRO 3 2 / R        master weights   4 / R
    gradients, summed in fp32 4, at ZeRO 3 4 / R        two moments      8 / R

times 1.25, and 300 MiB more. Seconds are those until every rank is ready, beside the seconds in which one process
draws the whole model and does nothing else.

Calls: both ranks of a tiny run are traced by strace from their exec to the end of their first step, on datasets of 10,
1,000 and 100,000 shards of the same two documents. Counted are calls that open, look up, list or stat something below
the dataset's folder. Samples lie in other shards of other datasets, so the goal allows twice the calls at 10 shards.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.table import Row, parser, show
from common.ports import free_port
from data_pipeline.manifest import Manifest, ShardInfo
from data_pipeline.shard_table import ShardTable
from data_pipeline.shards import SUFFIXES, ShardWriter
from model.config import ModelConfig
from model.flops import num_parameters

VOCAB_SIZE = 32000
MEBIBYTE = 2**20
FACTOR, EXTRA = 1.25, 300 * MEBIBYTE
IMPORTS = 600 * MEBIBYTE
"""Enough for what the imports of a rank take."""
MODEL = {"num_layers": 30, "d_model": 1024, "num_heads": 16, "num_kv_heads": 16, "d_ff": 2816, "tie_embeddings": True}
SMALL = MODEL | {"num_layers": 6, "d_model": 512, "num_heads": 8, "num_kv_heads": 8, "d_ff": 1408}
TINY = {"num_layers": 1, "d_model": 16, "num_heads": 2, "num_kv_heads": 2, "d_ff": 32, "tie_embeddings": True}
LENGTH = 32
LINKS = 10_000
"""Hard links to one file: file systems allow some 65,000."""
PATIENCE = 900.0
TRACED = "trace=%file,%fstat,getdents64"


def held(num_weights: int, stage: int, num_ranks: int) -> float:
    """Bytes that a rank holds in training, as the table above says."""
    weights = (2 + 4) / (num_ranks if stage == 3 else 1)
    return num_weights * (weights + (4 + 8) / num_ranks)


def write_dataset(folder: Path, num_shards: int) -> Path:
    """Shards of the same two documents under as many names, and their manifest."""
    folder.mkdir(parents=True)
    documents = np.random.default_rng(0).integers(3, VOCAB_SIZE, 2 * LENGTH)
    documents[[0, LENGTH]], documents[[LENGTH - 1, -1]] = 1, 2
    shards: list[ShardInfo] = []
    for number in range(num_shards):
        name = f"train-{number:06d}"
        if number % LINKS == 0:
            first = name
            with ShardWriter(folder / name, VOCAB_SIZE) as writer:
                writer.add(documents, np.array([LENGTH, LENGTH]))
        else:
            for suffix in SUFFIXES:
                os.link(folder / f"{first}{suffix}", folder / f"{name}{suffix}")
        sums = {name + suffix: writer.checksums[first + suffix] for suffix in SUFFIXES}
        counts = {"num_documents": writer.num_documents, "num_tokens": writer.num_tokens}
        shards.append(ShardInfo(name=name, checksums=sums, source_bytes=4 * writer.num_tokens, **counts))
    Manifest(
        tokenizer_fingerprint="synthetic",
        config_fingerprint="synthetic",
        vocab_size=VOCAB_SIZE,
        dtype=writer.dtype.name,
        bos_id=1,
        eos_id=2,
        splits={"train": ShardTable.of(shards)},
    ).save(folder)
    return folder


def write_run(folder: Path, data: Path, model: dict[str, Any], steps: int, **training: Any) -> Path:
    """A run folder with its config; what lies there already stays."""
    tree = {
        "name": folder.name,
        "runs_dir": str(folder.parent),
        "tokenizer": {"path": "none"},
        "data": {"path": str(data)},
        "model": model,
        "training": {"steps": steps, "sequence_length": LENGTH, "global_batch_size": 4, "prefetch": 0}
        | {"threads_per_process": 1, "peak_tflops": 1.0, **training},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder


def start(num_ranks: int, *command: str, traces: list[Path] | None = None, patience: float = PATIENCE) -> list[str]:
    """Output of each rank of `python -m command`; an error when one fails, or takes more than `patience` seconds."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(num_ranks):
        strace = ["strace", "-f", "-y", "--seccomp-bpf", "-qq", "-e", TRACED, "-o", str(traces[rank])] if traces else []
        numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
        how = {"env": os.environ | place | numbers, "cwd": Path(__file__).parents[1], "text": True}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        ranks.append(subprocess.Popen([*strace, sys.executable, "-m", *command], **how, **pipes))  # type: ignore[call-overload]
    try:
        outputs = [rank.communicate(timeout=patience) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        if rank.returncode:
            raise RuntimeError(f"a rank of {' '.join(command)} ended with {rank.returncode}:\n{errors[-4000:]}")
    return [output for output, _ in outputs]


def wait_for_memory(num_bytes: float) -> None:
    """Returns once the machine has so much to spare: it may have other work."""
    deadline = time.monotonic() + PATIENCE
    while True:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        if free > num_bytes:
            return
        if time.monotonic() > deadline:
            sys.exit(f"{num_bytes / 2**30:.1f} GiB of memory are needed and {free / 2**30:.1f} GiB are free")
        time.sleep(5)


def measure_memory(folder: Path, model: dict[str, Any]) -> list[Row]:
    """Rows of all starts of a model."""
    data = write_dataset(folder / "data", 10)
    num_weights = num_parameters(ModelConfig.model_validate(model), VOCAB_SIZE)
    whole = _facts(start(1, "benchmarks.start_rank", "whole", str(write_run(folder / "whole", data, model, 1))))
    rows = []
    for way in ("new", "resumed"):
        saved = _save(folder / "saved", data, model) if way == "resumed" else None
        for stage, num_ranks in ((1, 2), (3, 2), (1, 4), (3, 4)):
            limit = FACTOR * held(num_weights, stage, num_ranks) + EXTRA
            wait_for_memory(num_ranks * (held(num_weights, stage, num_ranks) + IMPORTS))
            run = write_run(saved or folder / f"new-{stage}-{num_ranks}", data, model, 2, zero_stage=stage)
            facts = _facts(start(num_ranks, "benchmarks.start_rank", "run", str(run)))
            name = f"ZeRO {stage}, {num_ranks} ranks, {way}"
            print(name, facts, file=sys.stderr, flush=True)
            peer = f"{FACTOR} x held + 300 MiB"
            rows.append(Row(f"{name}: MiB", facts["peak"] / MEBIBYTE, peer, limit / MEBIBYTE, 1.0, True))
            peer = "whole model drawn alone"
            rows.append(Row(f"{name}: seconds", facts["seconds"], peer, whole["seconds"], None, True))
    return rows


def _save(folder: Path, data: Path, model: dict[str, Any]) -> Path:
    """A run of one rank with a checkpoint of its first step, one sample: bf16 is slow on a CPU without units for it."""
    wait_for_memory(held(num_parameters(ModelConfig(**model), VOCAB_SIZE), 3, 1) + IMPORTS)
    write_run(folder, data, model, 1, zero_stage=3, global_batch_size=1)
    start(1, "training.worker", str(folder))
    return folder


def _facts(outputs: list[str]) -> dict[str, float]:
    """The worst of what ranks said in their last lines."""
    said = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {key: max(facts[key] for facts in said) for key in said[0]}


def measure_calls(folder: Path, sizes: list[int]) -> list[Row]:
    """Rows of file-system calls of both ranks by number of shards."""
    if shutil.which("strace") is None:
        sys.exit("strace is not installed; install it to count file-system calls")
    counts: dict[int, list[int]] = {}
    rows = []
    for size in sizes:
        data = write_dataset(folder / f"data-{size}", size)
        run = write_run(folder / f"calls-{size}", data, TINY, 1, zero_stage=1)
        traces = [folder / f"trace-{size}-{rank}" for rank in (0, 1)]
        start(2, "training.worker", str(run), traces=traces)
        lines = [trace.read_text(errors="replace").splitlines() for trace in traces]
        counts[size] = [max(1, sum(str(data) in line for line in of_rank)) for of_rank in lines]
        print(f"{size} shards", counts[size], [len(of_rank) for of_rank in lines], file=sys.stderr, flush=True)
        for rank in (0, 1):
            what = f"calls below the dataset, {size:,} shards, rank {rank}"
            rows.append(Row(what, counts[size][rank], f"{sizes[0]} shards", counts[sizes[0]][rank], 0.5, True))
        shutil.rmtree(data)
    rows.append(Row("calls of rank 1 in all, its imports too", len(lines[1]), "below the dataset", counts[size][1]))
    return rows


def main() -> int:
    """Runs both parts."""
    args: argparse.Namespace = parser(__doc__.splitlines()[0]).parse_args()
    model, sizes = (SMALL, [10, 1000]) if args.quick else (MODEL, [10, 1000, 100_000])
    with tempfile.TemporaryDirectory(prefix="shardline-bench-") as folder:
        rows = measure_calls(Path(folder), sizes) + measure_memory(Path(folder), model)
    millions = num_parameters(ModelConfig.model_validate(model), VOCAB_SIZE) / 1e6
    return show(f"Start of a rank; memory with {millions:.0f} M parameters in bf16", rows, args)


if __name__ == "__main__":
    sys.exit(main())
