"""A small dataset, run folders on it, and real ranks to train them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from common.ports import free_port
from data_pipeline.manifest import Manifest, ShardInfo
from data_pipeline.shards import ShardWriter
from training.config import RunConfig

VOCAB_SIZE = 307
TIMEOUT = 900
REPOSITORY = Path(__file__).parents[2]


def write_dataset(folder: Path, seed: int = 0, num_documents: int = 900) -> Path:
    """Documents of 3 to 90 tokens that a bigram can predict in part."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split, count in (("train", num_documents), ("validation", 30)):
        lengths = rng.integers(3, 90, count)
        documents = []
        for length in lengths:
            body = np.cumsum(rng.integers(0, 3, length - 2)) + rng.integers(0, VOCAB_SIZE)
            documents.append(np.concatenate([[1], 10 + body % (VOCAB_SIZE - 10), [2]]))
        with ShardWriter(folder / f"{split}-00000", VOCAB_SIZE) as shard:
            shard.add(np.concatenate(documents), lengths)
        info = {"name": f"{split}-00000", "num_documents": shard.num_documents, "num_tokens": shard.num_tokens}
        splits[split] = [ShardInfo(**info, checksums=shard.checksums, source_bytes=shard.num_tokens)]
    facts = {"tokenizer_fingerprint": "vocabulary", "vocab_size": VOCAB_SIZE, "dtype": "uint16", "bos_id": 1}
    Manifest(**facts, eos_id=2, special_ids={"mask": 3}, config_fingerprint="config", splits=splits).save(folder)
    return folder


def tiny_config(data: Path, **sections: dict) -> RunConfig:
    """A run of 20 steps of 16 samples of 32 tokens; `sections` change keys of its sections."""
    tree = {
        "name": "run",
        "tokenizer": {"path": "none"},
        "data": {"path": str(data)},
        "model": {"num_layers": 2, "d_model": 32, "num_heads": 4, "num_kv_heads": 2, "d_ff": 64},
        "optimizer": {"lr": 3e-3, "gradient_clipping": 0.5},
        "schedule": {"warmup_steps": 3},
        "training": {
            "steps": 20,
            "sequence_length": 32,
            "global_batch_size": 16,
            "micro_batch_size": 2,
            "precision": "fp32",
            "threads_per_process": 1,  # threads of one rank wait for each other badly on a busy machine
            "peak_tflops": 1.0,
        },
        "evaluation": {"interval_steps": 10, "num_samples": 16},
        "checkpoint": {"interval_steps": 10},
    }
    for name, keys in sections.items():
        tree[name] = {**tree.get(name, {}), **keys} if isinstance(keys, dict) else keys
    return RunConfig.model_validate(tree)


def save_config(config: RunConfig, folder: Path) -> Path:
    """Makes a run folder as the launcher does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return folder


def steps_of(folder: Path) -> list[dict]:
    """Lines of metrics of training steps."""
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return [line for line in map(json.loads, lines) if "evaluation" not in line]


def events_of(folder: Path, kind: str) -> list[dict]:
    """Events of one kind."""
    return [e for e in map(json.loads, (folder / "events.jsonl").read_text().splitlines()) if e["event"] == kind]


def torchrun(num_ranks: int, *command: str, timeout: float = TIMEOUT) -> subprocess.CompletedProcess:
    """Runs a module or script on ranks started by torch's launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={num_ranks}"]
    launcher += ["--master-addr=127.0.0.1", f"--master-port={free_port()}", "--max-restarts=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    how = {"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": timeout}
    return subprocess.run([*launcher, *command], env=environment, **how)


def lone_rank(*command: str, gpu: bool) -> None:
    """Runs a module as one rank, as Slurm starts it with one GPU shown to each of four ranks; else with none shown."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "3" if gpu else "0", "LOCAL_WORLD_SIZE": "4" if gpu else "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": "0" if gpu else ""}
    words = [sys.executable, "-m", *command]
    how = {"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": TIMEOUT}
    done = subprocess.run(words, env={**os.environ, **place}, **how)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def start_ranks(
    folder: Path,
    num_ranks: int,
    preexec: Callable[[], None] | None = None,
    facts: Callable[[int], dict[str, str]] = lambda rank: {},
    module: str = "training.worker",
) -> list[subprocess.Popen]:
    """Starts workers with nothing but the standard environment, as Slurm does, and further `facts` for each rank."""
    port = str(free_port())
    ranks = []
    for rank in range(num_ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
        environment = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        environment |= facts(rank)
        command = [sys.executable, "-m", module, str(folder)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        ranks.append(subprocess.Popen(command, env=environment, preexec_fn=preexec, **pipes))
    return ranks


def finish(ranks: list[subprocess.Popen], timeout: float = TIMEOUT) -> list[tuple[int, str]]:
    """Exit status and stderr of each rank; a rank that outlives the timeout is killed and fails the test."""
    try:
        errors = [rank.communicate(timeout=timeout)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, error) for rank, error in zip(ranks, errors, strict=True)]


def wait_for_step(folder: Path, step: int, ranks: list[subprocess.Popen]) -> None:
    """Returns once the run has done `step` steps."""
    _wait(lambda: any(line["step"] >= step for line in steps_of(folder)), ranks)


def wait_for_event(folder: Path, kind: str, ranks: list[subprocess.Popen]) -> None:
    """Returns once the run has written an event of this kind."""
    _wait(lambda: (folder / "events.jsonl").exists() and bool(events_of(folder, kind)), ranks)


def _wait(happened: Callable[[], bool], ranks: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not happened():
        assert time.monotonic() < deadline, "the run never got there"
        assert all(rank.poll() is None for rank in ranks), finish(ranks)
        time.sleep(0.005)
