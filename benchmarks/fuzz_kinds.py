"""What is fuzzed: a valid folder of each kind, the code that reads it, and when what was read is wrong.

    Kind.make(folder) once -> copied and spoilt for each case -> Kind.read(folder) -> Kind.judge(found, valid)

Readers are those behind the commands. Where a checksum covers what is read, it must come back as it was written or not
at all; where the file is the authority itself (a config, a line of metrics), it must have the form that others rely on.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
import yaml

from common.files import checksum
from data_pipeline.manifest import FILE_NAME, Manifest, ShardInfo
from data_pipeline.opening import open_dataset
from data_pipeline.reading.dataset import TokenDataset
from data_pipeline.reading.inspect import inspect_dataset, verify_dataset
from data_pipeline.shards import ShardReader, ShardWriter, write_sums
from data_pipeline.tokenizer import MODEL_NAME, Tokenizer, train_tokenizer
from launcher import views
from launcher.config import load_config, save_config, to_yaml
from launcher.console import StageProgress
from launcher.report import write_report
from launcher.run_folder import RunFolder, last_step, metrics_of
from launcher.stages import train_tokenizer as train_tokenizer_of
from launcher.status import status
from launcher.submit import Request, scripts
from training import fence
from training.config import RunConfig
from training.distributed import World
from training.events import EventLog
from training.lock import refuse_second_writer
from training.metrics import forget_after
from training.state.boxes import Box
from training.state.choosing import choose, read_index
from training.state.folder import delete_superseded, latest_checkpoint, point_to, reading
from training.state.identity import RunIdentity, RunState, check_identity
from training.state.index import written_slices
from training.state.layout import sharded
from training.state.loading import stream_weights
from training.state.saving import Snapshot, commit
from training.state.sums import CHECKSUMS, dump_sums
from training.worker import read_config

SHAPES = {"embedding": (11, 3), "matrix": (40, 50), "norm": (7,), "scale": ()}
KINDS = ("weight", "exp_avg", "exp_avg_sq")
STEPS = (10, 20)
"""Steps of the two checkpoints of a run."""
CONFIG = """
name: run
runs_dir: runs
tokenizer: {path: tokenizer, vocab_size: 320, num_sentinels: 8, training_megabytes: 0.1}
data: {path: dataset, sources: [{path: text.jsonl}], validation_fraction: 0.1}
objective: {name: next_token}
model: {shape: causal, num_layers: 2, d_model: 64, num_heads: 4, num_kv_heads: 2, d_ff: 128}
optimizer: {lr: 3.0e-4, betas: [0.9, 0.95], weight_decay: 0.1}
schedule: {name: wsd, warmup_steps: 3, decay_steps: 5}
training: {steps: 20, sequence_length: 32, global_batch_size: 16, micro_batch_size: 4, num_processes: 2, zero_stage: 1,
  precision: bf16, profile: {start: 3, steps: 2, ranks: [0]}, 
  deepspeed: {zero_optimization: {reduce_bucket_size: 1000000}}}
parallel: {tensor: 1}
evaluation: {interval_steps: 5, num_samples: 16, objectives: [{name: prefix_lm}]}
checkpoint: {interval_steps: 10, keep: 2, keep_every_steps: 100}
"""
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
"""
SQUEUE = "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n"
"""A cluster that knows none of the jobs any more."""

Judge = Callable[[Any, Any], str]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input."""

    name: str
    """What it is called on the command line."""
    files: dict[str, str]
    """Forms of the files that are spoilt, by path below the folder of a case."""
    make: Callable[[Path], object]
    """Writes a valid folder."""
    read: Callable[[Path], Any]
    """Reads it as commands do, and returns what there is to compare."""
    judge: Judge
    """(found, valid) -> why what was found is wrong, else empty."""
    words: tuple[str, ...]
    """A command that reads it; the folder of a case is its working folder."""
    share: int = 1
    """How many cases it gets for each one of others."""
    mend: Callable[[Path], object] = lambda folder: None
    """Done after a file was spoilt: makes checksums fit what is there now."""


def any_value(found: Any, valid: Any) -> str:
    """For what is its own authority: whatever is read is right."""
    return ""


def the_same(found: Any, valid: Any) -> str:
    """For what checksums cover."""
    return "" if found == valid else "what was read is not what was written"


def make_config(folder: Path) -> None:
    """A config with a key of every section."""
    (folder / "run.yaml").write_text(CONFIG)


def read_run_config(folder: Path) -> str:
    """The resolved config, which must mean the same when it is read again."""
    text = to_yaml(load_config(folder / "run.yaml"))
    (folder / "again.yaml").write_text(text)
    assert to_yaml(load_config(folder / "again.yaml")) == text, "a resolved config does not read back equal"
    return text


def make_profile(folder: Path) -> None:
    """A cluster's profile, and a config to submit."""
    make_config(folder)
    (folder / "cluster.yaml").write_text(PROFILE)


def read_profile(folder: Path) -> list[str]:
    """Job files of both stages."""
    config = load_config(folder / "run.yaml")
    return list(scripts(config, Request(str(folder / "cluster.yaml"), 2, stage="data")).values())


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


def read_tokenizer(folder: Path) -> tuple[str, Any]:
    """Its fingerprint, and ids and text of some words."""
    tokenizer = Tokenizer.load(folder / "tokenizer", "off")
    tokenizer.record()
    ids = tokenizer.encode("they have the word\n\u00e9\U0001f600<mask>")
    tokens, lengths = tokenizer.encode_documents(["from this", ""])
    return tokenizer.fingerprint, (ids.tolist(), tokenizer.decode(ids), tokens.tolist(), lengths.tolist())


def read_record(folder: Path) -> str:
    """What is said of a tokenizer that was trained already."""
    return views.tokenizer(train_tokenizer_of(load_config(folder / "run.yaml"), StageProgress("training")))


def same_fingerprint_same_meaning(found: tuple[str, Any], valid: tuple[str, Any]) -> str:
    """A model file of another fingerprint is another tokenizer, which datasets and runs refuse."""
    return "another meaning under the same fingerprint" if found[0] == valid[0] and found != valid else ""


def make_dataset(folder: Path) -> None:
    """Two shards of training, the first of more than one block, and one of validation, with their tokenizer."""
    make_tokenizer(folder)
    record, data = Tokenizer.load(folder / "tokenizer", "off").record(), folder / "dataset"
    splits: dict[str, list[ShardInfo]] = {}
    for split, number, documents in (("train", 0, 900), ("train", 1, 20), ("validation", 0, 15)):
        name, rng = f"{split}-{number:05d}", np.random.default_rng(documents)
        lengths = rng.integers(3, 90, documents)
        with ShardWriter(data / name, record["vocab_size"]) as shard:
            shard.add(rng.integers(20, record["vocab_size"], lengths.sum()), lengths)
        counts = {"num_documents": documents, "num_tokens": shard.num_tokens, "source_bytes": 3 * shard.num_tokens}
        splits.setdefault(split, []).append(ShardInfo(name=name, checksums=shard.checksums, **counts))
    Manifest(**record, config_fingerprint="c" * 32, splits=splits, counts={"kept": 935}).save(data)  # type: ignore[arg-type]


def read_data(folder: Path) -> dict[str, Any]:
    """Fingerprints of a dataset and every document of it, by the ways of a start, an inspection and a verification."""
    data = folder / "dataset"
    manifest = open_dataset(data, folder / "tokenizer")
    documents = {}
    for split in manifest.splits:
        rows = TokenDataset(data, manifest, split, max(1, manifest.num_tokens(split)), overlap=0)
        documents[split] = [piece.tobytes() for index in range(len(rows)) for piece in rows.sample(index)]
        for piece in (piece for index in (0, len(rows) - 1) if len(rows) for piece in rows.sample(index)):
            assert len(piece), "a document of no tokens"
    verify_dataset(data)
    for split in manifest.splits:
        inspect_dataset(data, Tokenizer.load(folder / "tokenizer", "off"), split=split, sequence_length=64)
    return {"fingerprints": manifest.fingerprints, "documents": documents}


def same_documents(found: dict[str, Any], valid: dict[str, Any]) -> str:
    """The same fingerprints mean the same documents, and other ones documents that were written all the same."""
    if found["fingerprints"] == valid["fingerprints"] and found["documents"] != valid["documents"]:
        return "other documents under the same fingerprints"
    written = {document for split in valid["documents"].values() for document in split}
    read = {document for split in found["documents"].values() for document in split}
    return "" if read <= written else "a document that nobody wrote"


def make_foreign(folder: Path) -> None:
    """A shard without .sums, as another program leaves it."""
    lengths = np.random.default_rng(1).integers(3, 90, 200)
    with ShardWriter(folder / "theirs", 320) as shard:
        shard.add(np.arange(lengths.sum()) % 320, lengths)
    (folder / "theirs.sums").unlink()


def read_foreign(folder: Path) -> list[int]:
    """Lengths of its documents, which must make up its tokens."""
    write_sums(folder / "theirs")
    reader = ShardReader(folder / "theirs")
    starts = reader.boundaries(0, reader.num_tokens)
    reader.tokens(0, reader.num_tokens).sum()
    assert len(starts) == reader.num_documents and (np.diff(starts) > 0).all(), "documents that do not follow another"
    return starts.tolist()


def make_run(folder: Path) -> None:
    """A run with two checkpoints, metrics, events of two machines, and jobs of a cluster that forgot them."""
    make_dataset(folder)
    run = folder / "runs" / "run"
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


def read_checkpoint(folder: Path) -> tuple[int, str, Any]:
    """Step, digest of all tensors and state of the checkpoint that the run would go on from."""
    run = folder / "runs" / "run"
    with reading(run):
        chosen = choose(run, World.alone()).checkpoint
        assert chosen is not None, "a run with checkpoints would begin anew"
        digest = xxhash.xxh3_128()
        for kind in read_index(chosen.folder).kinds:
            for name, tensor in stream_weights(chosen.folder, kind):
                digest.update(f"{name} {list(tensor.shape)}".encode())
                digest.update(tensor.numpy().tobytes())
    check_identity(chosen.identity, chosen.identity, chosen.folder)
    state = chosen.state
    assert state.step + state.samples_consumed >= 0 and state.tokens_consumed + 1, "a state that is none"
    return state.step, digest.hexdigest(), dataclasses.asdict(state)


def one_of_its_checkpoints(found: tuple[int, str, Any], valid: tuple[int, str, Any]) -> str:
    """The newest as it was written, or the one before it as that was."""
    return "" if found in (valid, _earlier()) else f"a checkpoint of step {found[0]} that nobody wrote"


def _earlier() -> tuple[int, str, Any]:
    return EARLIER[0]


EARLIER: list[Any] = []
"""What `read_checkpoint` says of the older checkpoint."""


def note_earlier(folder: Path) -> None:
    """Reads the older checkpoint of a run on its own."""
    shutil.copytree(
        folder / "runs" / "run" / "checkpoints" / "step-00000010", folder / "alone/runs/run/checkpoints/step-00000010"
    )
    EARLIER[:] = [read_checkpoint(folder / "alone")]
    shutil.rmtree(folder / "alone")


def make_checkpoints(folder: Path) -> None:
    """A run whose checkpoints are to be spoilt."""
    make_run(folder)
    note_earlier(folder)


def reseal(folder: Path) -> None:
    """Computes the list of checksums anew, as somebody would who changes a checkpoint on purpose."""
    newest = folder / "runs/run/checkpoints/step-00000020"
    if newest.is_dir() and not (newest / CHECKSUMS).is_symlink():
        files = [path for path in newest.iterdir() if path.name != CHECKSUMS and path.is_file()]
        if not any(path.is_symlink() for path in files):
            (newest / CHECKSUMS).write_bytes(dump_sums({path.name: checksum(path) for path in files}))


def read_state(folder: Path) -> tuple[int, str, Any]:
    """What a start does with the small files of a run, and what the run would go on from."""
    run = folder / "runs" / "run"
    found = read_checkpoint(folder)
    RunFolder.read(run)
    fence.read(run)
    fence.is_lost(run, "7.1")
    refuse_second_writer(run)
    fence.take(run, "8.0")
    fence.check(run, "8.0")
    if (newest := latest_checkpoint(run)) is not None:
        point_to(newest)
    delete_superseded(run, 1, None)
    return found


def read_run(folder: Path) -> list[str]:
    """All that is made of a run's files: status, report, progress; and what a start makes of them."""
    run = folder / "runs" / "run"
    status(run)
    stands = RunFolder.read(run)
    assert stands.config is not None
    write_report(stands.config)
    last_step(run)
    log = EventLog(run, 0, {"attempt": "9.9"})
    log.write("start", time=time.time())
    log.error("x", 2)
    assert log.has_been_told(), "an event that was written is not found"
    losses = [repr(line["loss"]) for line in metrics_of(run) if "loss" in line]
    forget_after(run / "metrics.jsonl", 10)
    return losses


def read_worker_config(folder: Path) -> str:
    """The config that a rank reads, and what others read of the same file."""
    run = folder / "runs" / "run"
    config: RunConfig = read_config(run)
    (folder / "same.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert to_yaml(load_config(folder / "same.yaml")) == to_yaml(config), "ranks and commands read another config"
    return yaml.safe_dump(config.model_dump(mode="json"))


RUN = "runs/run"
NEWEST = f"{RUN}/checkpoints/step-00000020"
INSPECT = ("data", "inspect", "dataset", "--tokenizer", "tokenizer")
STATUS = ("status", RUN)

ALL = (
    Kind("config", {"run.yaml": "yaml"}, make_config, read_run_config, any_value, ("config", "show", "run.yaml"), 3),
    Kind(
        "profile",
        {"cluster.yaml": "yaml"},
        make_profile,
        read_profile,
        any_value,
        ("submit", "run.yaml", "--cluster", "cluster.yaml", "--nodes", "2", "--dry-run"),
        2,
    ),
    Kind("manifest", {f"dataset/{FILE_NAME}": "json"}, make_dataset, read_data, same_documents, INSPECT, 3),
    Kind(
        "shard",
        {
            f"dataset/{split}-00000{suffix}": "binary"
            for split in ("train", "validation")
            for suffix in (".bin", ".idx", ".sums")
        },
        make_dataset,
        read_data,
        the_same,
        ("data", "verify", "dataset"),
        3,
    ),
    Kind("foreign shard", {"theirs.bin": "binary", "theirs.idx": "binary"}, make_foreign, read_foreign, any_value, ()),
    Kind(
        "tokenizer",
        {f"tokenizer/{MODEL_NAME}": "binary"},
        make_dataset,
        read_tokenizer,
        same_fingerprint_same_meaning,
        INSPECT,
    ),
    Kind(
        "tokenizer record",
        {"tokenizer/tokenizer_info.json": "json"},
        make_dataset,
        read_record,
        any_value,
        ("tokenizer", "train", "run.yaml"),
    ),
    Kind(
        "checkpoint",
        {
            f"{NEWEST}/{name}": form
            for name, form in (
                ("index.json", "json"),
                ("state.json", "json"),
                (CHECKSUMS, "json"),
                ("part-00000.safetensors", "binary"),
            )
        },
        make_checkpoints,
        read_checkpoint,
        one_of_its_checkpoints,
        ("convert", RUN, "--out", "served"),
        3,
    ),
    Kind(
        "resealed checkpoint",
        {
            f"{NEWEST}/{name}": form
            for name, form in (("index.json", "json"), ("state.json", "json"), ("part-00000.safetensors", "binary"))
        },
        make_checkpoints,
        read_checkpoint,
        any_value,
        ("convert", RUN, "--out", "served"),
        2,
        reseal,
    ),
    Kind(
        "state",
        {f"{RUN}/{name}": "binary" for name in ("checkpoints/latest", "attempt", "lock", "readers")},
        make_checkpoints,
        read_state,
        one_of_its_checkpoints,
        STATUS,
    ),
    Kind("config of a run", {f"{RUN}/config.yaml": "yaml"}, make_run, read_worker_config, any_value, STATUS),
    Kind("metrics", {f"{RUN}/metrics.jsonl": "lines"}, make_run, read_run, any_value, STATUS, 2),
    Kind(
        "events",
        {f"{RUN}/events.jsonl": "lines", f"{RUN}/events/job-7.0.jsonl": "lines"},
        make_run,
        read_run,
        any_value,
        STATUS,
        2,
    ),
    Kind("jobs", {f"{RUN}/slurm/jobs.jsonl": "lines"}, make_run, read_run, any_value, (*STATUS, "--json")),
)
"""Every kind, in the order of the table."""
