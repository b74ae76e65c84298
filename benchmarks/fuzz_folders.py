"""Valid folders of each kind that is fuzzed, small, as commands leave them.

    config, profile -> tokenizer -> dataset -> run with checkpoints, metrics, events and jobs

Each is made by the code that makes it in earnest, so that what is spoilt is what a user would have.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.synthetic import save_shard
from data_pipeline.manifest import Manifest, ShardInfo
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from launcher.config import load_config, save_config
from training.distributed import World
from training.jumps import Jump, note_jump
from training.state.boxes import Box
from training.state.folder import point_to, step_name
from training.state.identity import RunIdentity, RunState
from training.state.index import written_slices
from training.state.layout import sharded
from training.state.saving import Snapshot, commit

SHAPES = {"embedding": (11, 3), "matrix": (40, 50), "norm": (7,), "scale": ()}
KINDS = ("weight", "exp_avg", "exp_avg_sq")
RUN = "runs/run"
"""Folder of the run below the folder of a case."""
LOCAL = "local"
"""Folder of local checkpoints below the folder of a case."""
STEPS = (10, 20)
"""Steps of the two checkpoints of a run."""
CONFIG = """
name: run
runs_dir: runs
tokenizer: {path: tokenizer, vocab_size: 320, num_sentinels: 8, training_megabytes: 0.1}
data: {path: dataset, sources: [{path: text.jsonl, name: web}], validation_fraction: 0.1,
  deduplicate: {documents: near, lines: exact, similarity: 0.7, keep: longest}, packing: best_fit,
  filters: [gopher_quality, {name: language, keep: [en, zh]}, {name: characters, min_length: 3}]}
objective: {name: next_token}
model: {shape: causal, num_layers: 2, d_model: 64, num_heads: 4, num_kv_heads: 2, d_ff: 128}
optimizer: {lr: 3.0e-4, betas: [0.9, 0.95], weight_decay: 0.1}
schedule: {name: wsd, warmup_steps: 3, decay_steps: 5}
training: {steps: 20, sequence_length: 32, global_batch_size: 16, micro_batch_size: 4, num_processes: 2, zero_stage: 1,
  precision: bf16, profile: {start: 3, steps: 2, ranks: [0]},
  deepspeed: {zero_optimization: {reduce_bucket_size: 1000000}}}
parallel: {tensor: 1}
evaluation: {interval_steps: 5, num_samples: 16, objectives: [{name: prefix_lm}]}
checkpoint: {interval_steps: 10, keep: 2, keep_every_steps: 100, local_interval_steps: 5, local_dir: /tmp/local,
  writers: 8}
guards: {skips_in_a_row: 2, spikes: roll_back, window: 16, deviations: 5.5, min_steps: 8, roll_backs: 2,
  replica_check_interval: 50, recompute_interval: 100, reload_check: true}
deadlines: {rendezvous_minutes: 10, first_step_minutes: 20.5, step_minutes: 3, save_minutes: 5, slow_step_factor: 10}
"""
MIX = """mix: {sources: [{name: web, weight: 2, max_epochs: 3}, {name: books, path: books, weight: 1}],
    stages: [{from_step: 10, weights: {web: 1, books: 3}}], warn_epochs: 3}"""
PROFILE = """
description: a cluster
partition: batch
account: physics
gpus_per_node: 4
gpu_type: h100
ranks_per_node: 4
time: "24:00:00"
sbatch: [--switches=1]
srun: [--mpi=none]
modules: [cuda/12.4]
source: [/etc/profile.d/modules.sh]
container: {kind: apptainer, image: "${HOME}/a.sif", mounts: ["/lustre:/lustre"], options: [--nv]}
scratch: "/scratch/${USER}"
shared_paths: ["/"]
environment: {NCCL_DEBUG: WARN}
health: {level: full, min_memory_gb: 2.5, timeout_seconds: 60}
lemons: {file: /lustre/lemons.jsonl, points: 4, days: 3.5, weights: {unhealthy: 2}}
restarts: {broken: 1, hang: 0, node_lost: 5, out_of_memory: 0}
"""
SQUEUE = "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n"
"""A cluster that knows none of the jobs any more."""


def make_config(folder: Path) -> None:
    """A config with a key of every section."""
    (folder / "run.yaml").write_text(CONFIG)


def make_full_config(folder: Path) -> None:
    """The same with a mix, of datasets that nobody has."""
    make_config(folder)
    (folder / "run.yaml").write_text(CONFIG.replace("data: {", f"data: {{{MIX}, ", 1))


def make_profile(folder: Path) -> None:
    """A cluster's profile, and a config to submit."""
    make_config(folder)
    (folder / "cluster.yaml").write_text(PROFILE)


def make_tokenizer(folder: Path) -> None:
    """A tokenizer of 320 pieces with its sources, and a config."""
    make_config(folder)
    words = [
        "the",
        "of",
        "and",
        "to",
        "in",
        "you",
        "that",
        "he",
        "was",
        "for",
        "on",
        "with",
        "they",
        "this",
        "have",
        "from",
    ]
    rng = np.random.default_rng(0)
    with (folder / "text.jsonl").open("w") as file:
        for _ in range(200):
            file.write(json.dumps({"text": " ".join(rng.choice(words, 30))}) + "\n")
    config = load_config(folder / "run.yaml")
    train_tokenizer(config.tokenizer, config.data.sources)


def make_dataset(folder: Path) -> None:
    """Two shards of training, the first of more than one block, and one of validation, with their tokenizer."""
    make_tokenizer(folder)
    record, data = Tokenizer.load(folder / "tokenizer", "off").record(), folder / "dataset"
    splits: dict[str, list[ShardInfo]] = {}
    for split, number, documents in (("train", 0, 900), ("train", 1, 20), ("validation", 0, 15)):
        name, rng = f"{split}-{number:05d}", np.random.default_rng(documents)
        lengths = rng.integers(3, 90, documents)
        tokens = rng.integers(20, record["vocab_size"], lengths.sum())
        splits.setdefault(split, []).append(save_shard(data / name, tokens, lengths, record["vocab_size"], 3))
    Manifest(**record, config_fingerprint="c" * 32, splits=splits, counts={"kept": 935}).save(data)  # type: ignore[arg-type]


def make_foreign(folder: Path) -> None:
    """A shard without .sums, as another program leaves it."""
    lengths = np.random.default_rng(1).integers(3, 90, 200)
    save_shard(folder / "theirs", np.arange(lengths.sum()) % 320, lengths, 320)
    (folder / "theirs.sums").unlink()


def make_run(folder: Path) -> None:
    """A run with two checkpoints, metrics, events of two machines, and jobs of a cluster that forgot them."""
    make_dataset(folder)
    run = folder / RUN
    run.mkdir(parents=True)
    save_config(load_config(folder / "run.yaml"), run / "config.yaml")
    for step in STEPS:
        save_step(run, step)
    (run / "attempt").write_text("7.1\n")
    (run / "lock").write_text("process 1 on nowhere, attempt 7.1\n")
    (run / "slurm").mkdir()
    (run / "events").mkdir()
    commands = folder / "commands"
    commands.mkdir()
    (commands / "squeue").write_text(SQUEUE)
    (commands / "squeue").chmod(0o755)
    write_lines(run / "metrics.jsonl", [line for step in range(1, 21) for line in metrics_line(step)])
    write_lines(run / "events.jsonl", list(map(event, ("submit", "start", "ready", "evaluate", "save", "stop"))))
    write_lines(run / "events" / "job-7.0.jsonl", list(map(event, ("job_start", "launch", "unhealthy", "job_end"))))
    jobs = [{"time": 1.0, "job": job, "stage": "train", "commands": str(commands), "log": "x.log"} for job in (6, 7)]
    write_lines(run / "slurm" / "jobs.jsonl", jobs)


def make_jump(folder: Path) -> None:
    """A run that goes back over its newest checkpoint, and has not done so yet."""
    make_run(folder)
    note_jump(folder / RUN, Jump(15, 400, "loss 9.1 at step 17"), "7.1")


def make_local(folder: Path) -> None:
    """A run whose newest checkpoint is on the disk of its node alone."""
    make_run(folder)
    shared, local = folder / NEWEST, folder / LOCAL
    local.mkdir()
    shared.rename(local / shared.name)
    point_to(shared.with_name(step_name(STEPS[0])))


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def metrics_line(step: int) -> list[dict[str, Any]]:
    """Lines of one step, with an evaluation after every fifth."""
    figures = {"loss": 5.0 / step, "grad_norm": 1.0, "tokens_per_second": 10.0, "step_seconds": 0.5, "lr": 1e-3}
    totals = {"samples_consumed": 16 * step, "tokens_consumed": 500 * step, "memory_gb": 0.5, "time": float(step)}
    lines: list[dict[str, Any]] = [{"step": step, **figures, "mfu": 0.1, **totals}]
    evaluation = {"loss": 4.0, "unigram_entropy": 5.0, "perplexity": 55.0, "targets": 100, "seconds": 1.0}
    return [*lines, {"step": step, "evaluation": evaluation}] if step % 5 == 0 else lines


def event(name: str) -> dict[str, Any]:
    """An event of a job's start."""
    told = {"unhealthy": {"node": "node1", "why": "no GPU"}, "job_end": {"reason": "time", "message": "over"}}
    return {"time": 5.0, "event": name, "attempt": "7.1", "job": 7, "restart": 1, "step": 10, **told.get(name, {})}


def save_step(run: Path, step: int) -> None:
    """A checkpoint of four tensors that one rank writes, after two that others wrote in its place."""
    groups = [[Box.whole(name, shape) for name, shape in list(SHAPES.items())[i::2]] for i in range(2)]
    layout = sharded(1, 1, groups, [sum(box.size for box in group) for group in groups])
    size = sum(piece.length for piece in written_slices(layout, 0, 1))
    kinds = {kind: torch.arange(size) * 0.5 + 1000 * step + number for number, kind in enumerate(KINDS)}
    world = World.alone()
    commit(Snapshot(kinds, (layout,), step), run, RunState(step, 16 * step, 500 * step), identity(), world)


def identity() -> RunIdentity:
    """What the run of `make_run` is made of."""
    order = {"seed": 1, "sequence_length": 32, "objective": {"name": "next_token"}, "target_length": None}
    model = {"d_model": 64, "num_layers": 2, "num_heads": 4, "d_ff": 128, "vocab_size": 320}
    return RunIdentity(1, 1, "fp32", {"tokens": "d" * 32}, "t" * 32, order, model)


NEWEST = f"{RUN}/checkpoints/{step_name(STEPS[-1])}"
