"""Speed and memory of one GPU that trains: every shape, every ZeRO stage, each kernel, compiled and recomputed.

    python -m benchmarks.gpu_step [--quick] [--only WORD] [--check] [--json FILE]

Each row is a run of one rank through the worker, as srun would start it, in bf16 on synthetic documents of 30 to 3,000
tokens packed into rows of 2,048. Speed is that of the last `INTERVAL` steps, in bf16 TFLOP/s by the operations that
model/flops.py counts (pairs across documents are none), against the matrix product that the same GPU reaches at
8,192 x 8,192 x 8,192 in the same minute. Memory is the most that tensors ever held; beside it stands what a rank holds
from step to step by its own account, and activations, buffers and what is gathered for a while are the rest.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.synthetic import save_documents
from benchmarks.table import Row, parser, show
from common.ports import free_port
from model.config import ModelConfig
from model.flops import num_parameters

VOCAB_SIZE = 32000
ROW = 2048
INTERVAL = 6
STEPS = 2 * INTERVAL
"""The first half compiles and fills the allocator."""
PATIENCE = 240.0
BASE = {"num_layers": 24, "d_model": 2048, "num_heads": 16, "d_ff": 5504, "tie_embeddings": True}
SMALL = BASE | {"num_layers": 8, "d_model": 1024, "d_ff": 2816}
WINDOWS = ["sliding_attention"] * 3 + ["full_attention"]
RUNS: dict[str, dict[str, Any]] = {
    "causal, ZeRO 1": {"training": {"zero_stage": 1}},
    "causal, ZeRO 2": {},
    "causal, ZeRO 3": {"training": {"zero_stage": 3}},
    "causal, ZeRO 2, compiled": {"model": {"compile": True}},
    "causal, ZeRO 2, recomputed": {"model": {"activation_checkpointing": True}},
    "causal, ZeRO 2, muon": {"optimizer": {"name": "muon"}},
    "causal, ZeRO 2, windows": {"model": {"sliding_window": 512, "layer_types": WINDOWS}},
    "causal, ZeRO 2, two tokens": {"model": {"multi_token_depths": 1}},
    "causal, ZeRO 2, sdpa": {"model": {"attention_backend": "sdpa"}},
    "prefix": {"model": {"shape": "prefix"}, "objective": {"name": "prefix_lm"}},
    "encdec": {
        "model": {"shape": "encdec", "num_layers": 12, "num_encoder_layers": 12},
        "objective": {"name": "prefix_lm"},
    },
    "encoder": {"model": {"shape": "encoder"}, "objective": {"name": "masked_lm"}},
}


def write_dataset(folder: Path, num_documents: int) -> Path:
    """Documents of 30 to 3,000 tokens, most of them short, as texts of the web are."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(30), np.log(3000), num_documents)).astype(np.int64)
    tokens = rng.integers(10, VOCAB_SIZE, lengths.sum())
    ends = np.cumsum(lengths)
    tokens[ends - lengths], tokens[ends - 1] = 1, 2
    return save_documents(folder, tokens, lengths, VOCAB_SIZE)


def config_of(name: str, data: Path, small: bool) -> dict[str, Any]:
    """The config of a row, as a user would write it."""
    keys = RUNS[name]
    rows = 2 if small else 8
    training = {"steps": STEPS, "sequence_length": ROW, "global_batch_size": 2 * rows, "micro_batch_size": rows}
    # Of a peak of 1 TFLOP/s, the share that is reached is the TFLOP/s that are reached.
    return {
        "name": "run",
        "tokenizer": {"path": "none"},
        "data": {"path": str(data)},
        "model": (SMALL if small else BASE) | keys.get("model", {}),
        "objective": keys.get("objective", {"name": "next_token"}),
        "optimizer": keys.get("optimizer", {}),
        "training": training | {"log_interval": INTERVAL, "peak_tflops": 1.0} | keys.get("training", {}),
    }


def train(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last line of metrics and what the rank said it holds."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "training.worker", str(folder)],
        env=os.environ | place | {"MASTER_PORT": str(free_port())},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if done.returncode:
        raise RuntimeError(f"the rank ended with {done.returncode}:\n{done.stderr[-3000:]}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    facts = {key: value for event in events if event["event"] in ("start", "ready") for key, value in event.items()}
    return lines[-1], facts


def matrix_tflops() -> float:
    """bf16 TFLOP/s of the GPU's own matrix product, on numbers that are not all alike."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for turn in range(13):
        if turn == 3:
            begin.record()
        torch.mm(a, b, out=out)
    end.record()
    end.synchronize()
    return 10 * 2 * 8192**3 / (begin.elapsed_time(end) / 1000) / 1e12


def main() -> int:
    """Trains every row and shows them."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--only", default="", metavar="WORD", help="only the rows with this word in their name")
    args = arguments.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA GPU here")
    peak = matrix_tflops()
    torch.cuda.empty_cache()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="shardline-bench-") as place:
        data = write_dataset(Path(place) / "data", 2000)
        for number, name in enumerate(name for name in RUNS if args.only in name):
            config = config_of(name, data, args.quick)
            run = Path(place) / f"run-{number}"
            line, facts = train(run, config)
            shutil.rmtree(run)
            held = sum(value for value in facts["holds"].values() if not isinstance(value, str)) / 1e9
            print(name, json.dumps({"facts": facts, "line": line}), file=sys.stderr, flush=True)
            what = f"{name} ({facts['attention']})"
            rows.append(Row(f"{what}: TFLOP/s", line["mfu"], "matrix product", peak))
            rows.append(Row(f"{what}: GB at most", line["memory_gb"], "held from step to step", held, None, True))
    models = [ModelConfig.model_validate(config_of(name, data, args.quick)["model"]) for name in RUNS]
    millions = [num_parameters(model, VOCAB_SIZE) / 1e6 for model in models]
    sizes = f"{min(millions):,.0f} to {max(millions):,.0f} M parameters"
    return show(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {sizes}", rows, args)


if __name__ == "__main__":
    sys.exit(main())
