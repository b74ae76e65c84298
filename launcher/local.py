"""Training on this machine: checks, the run's folder, its ranks (ranks.py), and what came of it.

config -> checks -> runs/<name>/config.yaml -> ranks -> metrics.jsonl, events.jsonl -> TrainingResult
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.files import naming, write_whole
from common.json_lines import Record
from common.mistakes import Mistake, shown
from data_pipeline.opening import open_dataset
from data_pipeline.reading.corpus import Corpus
from launcher import ranks
from launcher.config import anchored
from launcher.console import console
from launcher.places import CONFIG
from launcher.run_folder import METRICS_FILE, RunFolder, keep_config
from training import fence
from training.config import RunConfig
from training.lock import sole_launch


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a launch ended."""

    run_dir: Path
    steps: int
    """Steps of the whole run."""
    last: Record
    """The last line of metrics, empty when there is none."""
    evaluation: Record
    """The last evaluation, empty when there is none."""
    already_finished: bool
    """True when there was nothing left to train."""


def train_locally(config: RunConfig, *, fresh: bool = False) -> TrainingResult:
    """Trains on `config.training.num_processes` ranks of this machine until the run's last step.

    Raises ValueError with the ranks' own sentence when they stopped on a user's mistake, Broken when they died,
    Stopped when a signal ended the run.
    """
    check_batch(config)
    # the ranks would say what is wrong with it too, but a quarter of a minute later
    corpus = Corpus.read(config.data, config.tokenizer, open_dataset)
    with naming(config.run_dir), sole_launch(config.run_dir):
        return _launch(config, corpus.has_held_out, fresh)


def _launch(config: RunConfig, evaluates: bool, fresh: bool) -> TrainingResult:
    before = RunFolder.read(config.run_dir)
    if before.config and fresh:
        raise Mistake(
            f"{before.path}: this run exists and --fresh was given; choose another name "
            "(--set name=...) or delete the folder"
        )
    changes = config_changes(before.config, config) if before.config else []
    evaluated = bool(before.evaluation) or not evaluates
    if before.config and not changes and before.step >= config.training.steps and evaluated:
        return TrainingResult(before.path, config.training.steps, before.last, before.evaluation, already_finished=True)
    for change in changes:
        console.print(f"  config changed since the last start: {change}", soft_wrap=True, markup=False)
    for sentence in before.left_out:
        if not sentence.startswith(f"{before.path / METRICS_FILE}: "):  # the ranks read all of it, and tell
            console.print(f"  {sentence}", soft_wrap=True, markup=False)
    _train(config)
    after = RunFolder.read(config.run_dir)
    return TrainingResult(after.path, config.training.steps, after.last, after.evaluation, already_finished=False)


def _train(config: RunConfig) -> None:
    """Starts the ranks with this config; a run that they did not accept it for keeps the config it had."""
    file, attempt = config.run_dir / CONFIG, fence.random_attempt()
    (config.run_dir / "logs").mkdir(parents=True, exist_ok=True)
    before = file.read_bytes() if file.exists() else None
    keep_config(config)
    try:
        ranks.run(config, attempt)
    finally:
        started = RunFolder.read(config.run_dir).of_start(attempt)
        if before is not None and not any(event["event"] == "ready" for event in started):
            write_whole(file, before)


def config_changes(before: RunConfig, after: RunConfig) -> list[str]:
    """Keys whose values differ, each with both values."""
    old, new = _flat(anchored(before)), _flat(anchored(after))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key} was {shown(old.get(key))}, is {shown(new.get(key))}" for key in keys]


def _flat(config: RunConfig) -> dict[str, Any]:
    def walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, child in value.items():
                yield from walk(child, f"{key}.{name}" if key else name)
        else:
            yield key, value

    return dict(walk(config.model_dump(mode="json"), ""))


def check_batch(config: RunConfig) -> None:
    """Refuses a global batch that the ranks cannot share evenly."""
    training, sharing, words = config.training, config.parallel.num_sharing, config.parallel.sharing_in_words
    if training.num_processes % sharing:
        raise Mistake(
            f"training.num_processes: {training.num_processes} ranks are no multiple of {words}; "
            f"use --nproc {-(-training.num_processes // sharing) * sharing}"
        )
    per_step = training.num_processes // sharing * training.micro_batch_size
    if training.global_batch_size % per_step:
        shared = f" / {words}" if sharing > 1 else ""
        raise Mistake(
            f"training.global_batch_size: {training.global_batch_size} is not a multiple of "
            f"num_processes x micro_batch_size = {training.num_processes} x {training.micro_batch_size}{shared}; "
            f"use a multiple of {per_step}"
        )
