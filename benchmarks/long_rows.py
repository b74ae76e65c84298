"""Rows of up to a million tokens that ranks share: what a rank needs for a step, and that the loss is the whole row's.

    python -m benchmarks.long_rows [--quick] [--check] [--json FILE]

One row of packed documents (30 to 3,000 tokens, one in forty ten times as long) is trained for a step in fp32 through
the real engine: by one rank that has all of it, by two and by four that share it (`parallel.context`). Memory is the
most that was resident in a process, less what was just before the step. Losses and norms must agree, or there is no
result. The model is tiny, so that activations, which grow with rows, are nearly all there is.
"""

import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.resident import resident
from benchmarks.start import start
from benchmarks.synthetic import save_documents
from benchmarks.table import Row, parser, show

LENGTHS = (2**15, 2**17, 2**20)
CONTEXTS = (1, 2, 4)
VOCAB_SIZE = 256
MODEL = {"num_layers": 1, "d_model": 64, "num_heads": 4, "d_ff": 128, "shape": "prefix"}
SHARE = 0.5
"""Of what further ranks could spare, how much they must: the rest does not shrink with rows."""
SAME = 1e-5
"""By which losses may differ, in nats per target, and norms, as a share."""
PATIENCE = 3600.0


def write_dataset(folder: Path) -> Path:
    """More tokens than the longest row takes."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(30), np.log(3000), 4000)).astype(np.int64)
    lengths[::40] *= 10
    tokens = rng.integers(10, VOCAB_SIZE, lengths.sum())
    ends = np.cumsum(lengths)
    tokens[ends - lengths], tokens[ends - 1] = 1, 2
    return save_documents(folder, tokens, lengths, VOCAB_SIZE)


def rank(data: Path, length: int, context: int) -> dict[str, Any]:
    """What one of the ranks that share a row does: one step."""
    from data_pipeline.manifest import Manifest
    from training.config import RunConfig
    from training.distributed import connect, disconnect, share_cores
    from training.engine import private_extensions
    from training.setup import build_engine, vocabulary_size
    from training.step import train_step
    from training.verify.plain import loader_of

    training = {"steps": 1, "sequence_length": length, "global_batch_size": 1, "precision": "fp32", "peak_tflops": 1.0}
    keys = {"name": "run", "tokenizer": {"path": "none"}, "data": {"path": str(data)}, "model": MODEL}
    keys |= {"objective": {"name": "prefix_lm"}, "training": training, "parallel": {"context": context}}
    config, manifest = RunConfig.model_validate(keys), Manifest.load(data)
    world = connect(timedelta(minutes=5), context=context)
    share_cores(world, 1)
    with private_extensions():
        engine = build_engine(config, vocabulary_size(config, manifest), world)
        with loader_of(config, manifest, world.mesh.data.rank, world.mesh.data.size) as loader:
            batches = next(loader)
        before = resident("VmRSS")
        result = train_step(engine, batches, 1e-3, world)
        seconds = result.seconds["step"]
    disconnect(world)
    memory = resident("VmHWM") - before
    return {"loss": result.loss, "norm": result.grad_norm, "memory": memory, "seconds": seconds}


def measure(data: Path, length: int) -> list[Row]:
    """The rows of a length."""
    found = {}
    for context in CONTEXTS:
        outputs = start(
            context, "benchmarks.long_rows", "--rank", str(data), str(length), str(context), patience=PATIENCE
        )
        ranks = [json.loads(output.splitlines()[-1]) for output in outputs]
        found[context] = max(ranks, key=lambda each: each["memory"])
    whole = found[1]
    rows = []
    for context, each in found.items():
        apart = max(abs(each["loss"] - whole["loss"]), abs(each["norm"] / whole["norm"] - 1))
        if not apart <= SAME:
            sys.exit(f"{length} tokens on {context} ranks: loss or norm differ by {apart:.2g}: this is no comparison")
        if context > 1:
            what = f"{length:,} tokens on {context} ranks: MB at most"
            figures = each["memory"] / 1e6, whole["memory"] / 1e6
            rows.append(Row(what, figures[0], "one rank", figures[1], 1 + SHARE * (context - 1), True))
    print(f"{length:,} tokens: loss {whole['loss']:.6f}, {whole['seconds']:.1f} s a step on one rank", file=sys.stderr)
    return rows


def main() -> int:
    """Runs the comparison."""
    if sys.argv[1:2] == ["--rank"]:
        print(json.dumps(rank(Path(sys.argv[2]), *map(int, sys.argv[3:]))), flush=True)
        return 0
    args = parser(__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="shardline-bench-") as folder:
        data = write_dataset(Path(folder) / "data")
        rows = [row for length in LENGTHS[: 1 if args.quick else None] for row in measure(data, length)]
    return show(f"One row in a step, prefix shape, fp32, one thread a rank, torch {torch.__version__}", rows, args)


if __name__ == "__main__":
    sys.exit(main())
