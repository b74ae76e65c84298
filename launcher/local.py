"""Training on this machine: checks, the run's folder, its ranks (ranks.py), and what came of it.

config -> checks -> runs/<name>/config.yaml -> ranks -> metrics.jsonl, events.jsonl -> TrainingResult
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.json_lines import read_lines
from common.mistakes import Mistake
from data_pipeline.opening import open_dataset
from launcher import ranks
from launcher.config import load_config, save_config
from launcher.console import console
from training.config import RunConfig

TAIL_BYTES = 65536


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a launch ended."""

    run_dir: Path
    last: dict[str, Any]
    """The last line of metrics, empty when there is none."""
    evaluation: dict[str, Any]
    """The last evaluation, empty when there is none."""
    already_finished: bool
    """True when there was nothing left to train."""


def train_locally(config: RunConfig, *, fresh: bool = False) -> TrainingResult:
    """Trains on `config.training.num_processes` ranks of this machine until the run's last step.

    Raises ValueError with the ranks' own sentence when they stopped on a user's mistake, Broken when they died,
    Stopped when a signal ended the run.
    """
    check_batch(config)
    manifest = open_dataset(
        config.data.path, config.tokenizer.path
    )  # the ranks would say so too, but a quarter of a minute later
    from training.lock import refuse_second_writer  # imports torch: seconds that other commands need not wait

    run_dir, config_file = config.run_dir, config.run_dir / "config.yaml"
    refuse_second_writer(run_dir)
    if config_file.exists() and fresh:
        raise Mistake(
            f"{run_dir}: this run exists and --fresh was given; choose another name "
            "(--set name=...) or delete the folder"
        )
    before = load_config(config_file) if config_file.exists() else None
    changes = config_changes(before, config) if before else []
    evaluated = bool(read_evaluation(run_dir)) or not manifest.num_tokens("validation")
    finished = before is not None and not changes and latest_step(run_dir) >= config.training.steps and evaluated
    if not finished:
        for change in changes:
            console.print(f"  config changed since the last start: {change}", soft_wrap=True)
        _train(config, before)
    return TrainingResult(run_dir, read_last_step(run_dir), read_evaluation(run_dir), finished)


def _train(config: RunConfig, before: RunConfig | None) -> None:
    """Starts the ranks with this config; a run that they did not accept it for keeps the config it had."""
    config_file, events = config.run_dir / "config.yaml", config.run_dir / "events.jsonl"
    (config.run_dir / "logs").mkdir(parents=True, exist_ok=True)
    num_events = len(read_lines(events))
    save_config(config, config_file)
    try:
        ranks.run(config, lambda: read_last_step(config.run_dir))
    finally:
        accepted = any(event["event"] == "ready" for event in read_lines(events)[num_events:])
        if before and not accepted:
            save_config(before, config_file)


def config_changes(before: RunConfig, after: RunConfig) -> list[str]:
    """Keys whose values differ, each with both values."""
    old, new = _flat(before), _flat(after)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in keys]


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
    training = config.training
    per_step = training.num_processes * training.micro_batch_size
    if training.global_batch_size % per_step:
        raise Mistake(
            f"training.global_batch_size: {training.global_batch_size} is not a multiple of "
            f"num_processes x micro_batch_size = {training.num_processes} x {training.micro_batch_size}; "
            f"use a multiple of {per_step}"
        )


def read_last_step(run_dir: Path) -> dict[str, Any]:
    """The last metrics line of a training step; reads only the file's end, however long the run."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        if line.startswith(b"{") and b'"loss"' in line:
            values = json.loads(line)
            if "loss" in values:
                return values
    return {}


def read_evaluation(run_dir: Path) -> dict[str, Any]:
    """The last evaluation, with its step."""
    lines = read_lines(run_dir / "metrics.jsonl")
    return next(({"step": line["step"], **line["evaluation"]} for line in reversed(lines) if "evaluation" in line), {})


def latest_step(run_dir: Path) -> int:
    """Step of the newest complete checkpoint, 0 when there is none."""
    from training.state.folder import latest_checkpoint, step_of

    newest = latest_checkpoint(run_dir)
    return step_of(newest) if newest else 0
