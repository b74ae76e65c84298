"""What `convert` costs: seconds against copying the file it writes, the check's share of them, and memory.

    python -m benchmarks.export_cost [--folder DIR] [--quick] [--check] [--json FILE]

Two decoders of one width, one several times as deep, train one step and are saved as a run saves them. Their
checkpoint is then exported as a Hugging Face folder and as a GGUF file, in fp32, each in a process of its own, in turns
with a copy of the weights it wrote (read from the page cache, written with fsync). Writing is an export whose check is
left out: reading the checkpoint, laying out, writing, fsync of it all; the check's seconds are what an export takes
longer than that. Memory is the most that was resident less what was when everything had been imported, with the check;
it is that of one layer, so the deeper model must not take more.
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
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint import dd, warm
from benchmarks.resident import resident
from benchmarks.table import Row, parser, show
from common.ports import free_port

VOCAB_SIZE, D_MODEL, LENGTH = 32000, 1024, 64
MODEL = {"d_model": D_MODEL, "num_heads": 16, "num_kv_heads": 4, "d_ff": 2816, "tie_embeddings": True}
LAYERS, LAYERS_OF_QUICK = (4, 20), (2, 8)
ROUNDS = 3
LEAST = 1e-3
"""Seconds, where a check takes less than two exports differ by."""
TIME_GOAL, MEMORY_GOAL = 1 / 1.5, 0.9
FORMATS = {"hf": "a Hugging Face folder", "gguf": "a GGUF file"}


def save(folder: Path, layers: int) -> Path:
    """Trains one step and saves it; in a process of its own."""
    from benchmarks.train_peers import packed
    from training.config import RunConfig
    from training.distributed import connect
    from training.setup import build_engine
    from training.state.identity import RunIdentity, RunState
    from training.state.saving import commit
    from training.step import train_step

    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    os.environ |= {name: str(value) for name, value in place.items()}
    training = {"steps": 1, "sequence_length": LENGTH, "global_batch_size": 1, "micro_batch_size": 1}
    tree: dict[str, Any] = {"name": "export", "tokenizer": {"path": "none"}, "data": {"path": "none"}}
    tree |= {"model": MODEL | {"num_layers": layers}, "training": training | {"precision": "fp32", "zero_stage": 1}}
    config = RunConfig.model_validate(tree)
    world = connect(timedelta(minutes=10))
    engine = build_engine(config, VOCAB_SIZE, world)
    rows = torch.randint(VOCAB_SIZE, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    train_step(engine, [packed(rows)], 1e-3, world)
    return commit(engine.snapshot(), folder, RunState(1), RunIdentity(1, 1, "fp32", "", "", {}, {}), world)


def export(form: str, checkpoint: Path, out: Path, layers: int, checked: bool) -> dict[str, float]:
    """Seconds, and bytes of memory; in a process of its own."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import model.exchange.convert as to_hf
    import model.exchange.gguf.convert as to_gguf
    from model.config import ModelConfig
    from model.exchange.gguf.vocabulary import Vocabulary
    from training.state.loading import stream_weights
    from training.state.sums import CHECKSUMS

    if not checked:
        setattr(to_hf, "check_export", lambda *_: None)  # noqa: B010
        setattr(to_gguf, "check_file", lambda *_: None)  # noqa: B010
    tokenizer = to_hf.TokenizerSpec(checkpoint / CHECKSUMS, as_it_is=True)
    config = ModelConfig.model_validate(MODEL | {"num_layers": layers})
    spec = to_hf.ExportSpec(config, VOCAB_SIZE, LENGTH, bos_id=1, eos_id=2, pad_id=3, tokenizer=tokenizer)
    before, start = resident("VmRSS"), time.perf_counter()
    if form == "hf":
        to_hf.export_hf(stream_weights(checkpoint), spec, out)
    else:
        made = to_gguf.GgufSpec(spec, Vocabulary("none"), None, "f32", False)
        to_gguf.export_gguf(stream_weights(checkpoint), made, out)
    return {"seconds": time.perf_counter() - start, "memory": resident("VmHWM") - before}


def copy(file: Path, to: Path) -> float:
    """Seconds of copying a file that lies in the page cache to the disk."""
    warm([file])
    took = dd([file], str(to), "conv=fsync")
    to.unlink()
    return took


def ask(*arguments: object) -> str:
    """The last line that this program says when it is started with arguments of its own."""
    command = [sys.executable, "-m", "benchmarks.export_cost", "--as", json.dumps([str(each) for each in arguments])]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.splitlines()[-1]


def measure(folder: Path, layers: int) -> dict[str, dict[str, float]]:
    """Medians by format."""
    checkpoint = ask("save", folder, layers)
    found = {}
    for form in FORMATS:
        rounds: list[dict[str, float]] = []
        for _ in range(ROUNDS):
            figures: dict[str, float] = {}
            for checked in (True, False):
                out = folder / form
                took = json.loads(ask(form, checkpoint, out, layers, int(checked)))
                weights = out if out.is_file() else out / "model.safetensors"
                if checked:
                    figures = {"check": took["seconds"], "memory": took["memory"]}
                else:
                    figures |= {"write": took["seconds"], "check": max(figures["check"] - took["seconds"], LEAST)}
                figures |= {"bytes": weights.stat().st_size, "copy": copy(weights, folder / "copy")}
                shutil.rmtree(out) if out.is_dir() else out.unlink()
            rounds.append(figures)
        found[form] = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    return found


def rows_of(small: dict[str, dict[str, float]], large: dict[str, dict[str, float]]) -> list[Row]:
    """The table."""
    rows = []
    for form, name in FORMATS.items():
        for figures in (small[form], large[form]):
            size = f"{figures['bytes'] / 1e9:.2f} GB"
            rows.append(
                Row(f"writing {name}, {size}, s", figures["write"], "dd conv=fsync", figures["copy"], TIME_GOAL, True)
            )
            rows.append(Row("its check, s", figures["check"], "writing", figures["write"], None, True))
        memory = [figures[form]["memory"] / 2**20 for figures in (large, small)]
        rows.append(Row(f"memory for {name}, MiB", memory[0], "that of the smaller", memory[1], MEMORY_GOAL, True))
    return rows


def main() -> int:
    """Runs the comparison, or one of its processes."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--folder", type=Path, metavar="DIR", help="where to write (a fast disk)")
    arguments.add_argument("--as", dest="part", metavar="PART", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.part:
        form, *rest = json.loads(args.part)
        if form == "save":
            print(save(Path(rest[0]), int(rest[1])))
        else:
            print(json.dumps(export(form, Path(rest[0]), Path(rest[1]), int(rest[2]), rest[3] == "1")))
        return 0
    found = []
    for layers in LAYERS_OF_QUICK if args.quick else LAYERS:
        with tempfile.TemporaryDirectory(prefix="shardline-bench-", dir=args.folder) as folder:
            found.append(measure(Path(folder), layers))
    return show("Exporting a checkpoint, fp32, one process", rows_of(*found), args)


if __name__ == "__main__":
    sys.exit(main())
