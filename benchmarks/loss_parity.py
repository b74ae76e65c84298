"""Proves that a change left training as it was: the same runs by two versions of the code, compared to the last bit.

    python -m benchmarks.loss_parity REVISION [--quick] [--steps N] [--ranks R] [--zero S] [--precision P] [--json FILE]

REVISION is anything git names; its files are taken out of the repository into a temporary folder, and it makes the
tokenizer and the dataset, so that data of old are read too. Every pair of shape and objective that means something
then trains on both versions (`--quick`: one objective of each shape). Exit status 1 when a loss differs.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
GRID = {
    "causal": ("next_token", "prefix_lm", "span_corruption", "ul2", "blank_infilling"),
    "prefix": ("prefix_lm", "span_corruption", "ul2", "blank_infilling"),
    "encoder": ("masked_lm", "sentence_pairs"),
    "encdec": ("span_corruption", "prefix_lm", "ul2", "blank_infilling"),
}
"""Pairs that mean something; the first of each shape stands for it in a quick run."""


class Version:
    """A tree of the code, and how its programs are started."""

    def __init__(self, name: str, tree: Path, work: Path):
        self.name, self.tree, self.work = name, tree, work

    def start(self, *words: object) -> None:
        """Runs Python on this tree; RuntimeError with its last words when it fails."""
        # PYTHONPATH goes before an installed version, and -P keeps the working folder out.
        environment = {**os.environ, "PYTHONPATH": str(self.tree), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")

    def train(self, config: dict[str, Any], num_ranks: int) -> list[dict[str, Any]]:
        """Lines of metrics of a run."""
        folder = self.work / self.name / config["name"]
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"runs_dir": str(folder.parent)}))
        launch = (
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--local-addr=127.0.0.1",
            f"--nproc-per-node={num_ranks}",
        )
        self.start(*launch, "-m", "training.worker", folder)
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if "loss" in line]


def taken_out(revision: str, folder: Path) -> Path:
    """Files of a revision below `folder`."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", revision], check=True, capture_output=True).stdout
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder


def base_config(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What all runs have in common: a small model on this Python's own library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return {
        "tokenizer": {
            "path": str(work / "tokenizer"),
            "vocab_size": 2000,
            "num_sentinels": 32,
            "training_megabytes": 1,
        },
        "data": {
            "path": str(work / "dataset"),
            "sources": [{"path": str(library / "json" / "*.py")}, {"path": str(library / "asyncio" / "*.py")}],
        },
        "model": {"num_layers": 2, "d_model": 64, "num_heads": 4, "num_kv_heads": 2, "d_ff": 128},
        "optimizer": {"lr": 1e-2, "gradient_clipping": 0.5},
        "schedule": {"warmup_steps": 3},
        "training": {
            "steps": args.steps,
            "sequence_length": 64,
            "global_batch_size": 16,
            "micro_batch_size": 4,
            "precision": args.precision,
            "zero_stage": args.zero,
            "threads_per_process": 1,
            "peak_tflops": 1.0,
        },
    }


def pairs(quick: bool) -> list[tuple[str, str]]:
    """Shapes and objectives to train."""
    return [(shape, name) for shape, names in GRID.items() for name in (names[:1] if quick else names)]


def compare(before: list[dict], after: list[dict]) -> dict[str, float | int]:
    """How many losses and norms differ, and the largest difference of a loss."""
    assert [line["step"] for line in before] == [line["step"] for line in after], "other steps were logged"
    both = list(zip(before, after, strict=True))
    return {
        "losses": sum(a["loss"] != b["loss"] for a, b in both),
        "norms": sum(a["grad_norm"] != b["grad_norm"] for a, b in both),
        "worst": max(abs(a["loss"] - b["loss"]) for a, b in both),
    }


def main(args: argparse.Namespace) -> int:
    """Trains and compares."""
    table = Table(
        title=f"{args.revision} and the working tree, {args.steps} steps on {args.ranks} ranks", title_justify="left"
    )
    for name in ("shape", "objective", "first loss", "last loss", "losses that differ", "norms that differ", "worst"):
        table.add_column(name, justify="left" if name in ("shape", "objective") else "right")
    rows = []
    with tempfile.TemporaryDirectory(prefix="loss-parity-") as folder:
        work = Path(folder)
        old, new = Version("before", taken_out(args.revision, work / "tree"), work), Version("after", ROOT, work)
        base = base_config(work, args)
        (work / "data.yaml").write_text(yaml.safe_dump({"name": "data", **base}))
        old.start("-m", "launcher.cli", "tokenizer", "train", work / "data.yaml")
        old.start("-m", "launcher.cli", "data", "build", work / "data.yaml")
        for shape, objective in pairs(args.quick):
            config = base | {"name": f"{shape}-{objective}", "objective": {"name": objective}}
            config["model"] = base["model"] | {"shape": shape}
            before, after = old.train(config, args.ranks), new.train(config, args.ranks)
            found = compare(before, after)
            rows.append({"shape": shape, "objective": objective, **found})
            ends = (f"{before[0]['loss']:.6f}", f"{before[-1]['loss']:.6f}")
            table.add_row(shape, objective, *ends, str(found["losses"]), str(found["norms"]), f"{found['worst']:.3g}")
    Console(width=120).print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(row["losses"] for row in rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="what to compare the working tree with, as git names it")
    parser.add_argument("--quick", action="store_true", help="one objective of each shape")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero", type=int, default=1, choices=(0, 1, 2, 3))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(parse()))
