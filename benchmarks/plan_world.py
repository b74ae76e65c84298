"""The plan's seconds against those that others have published, of runs on up to 512 GPUs.

    python -m benchmarks.plan_world [--rows] [--check]

The figures are those of benchmarks/published.yaml, each table with its source. Of each table one row gives the
efficiency of matrix products; all other rows are predicted with it. It needs no GPU and starts no rank.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from model.flops import Work, train_flops
from training.config import RunConfig
from training.plan.arithmetic import recomputed_flops, recomputed_layers
from training.plan.machines import Machine, machine
from training.plan.plan import Plan, plan
from training.plan.speed import BANDWIDTH

PUBLISHED = Path(__file__).with_name("published.yaml")
WORDS = {
    "model": "",
    "training.sequence_length": "rows of",
    "training.micro_batch_size": "micro-batch",
    "training.global_batch_size": "batch",
    "training.zero_stage": "ZeRO",
    "training.gradient_communication": "gradients in",
    "model.activation_checkpointing": "recomputed",
    "model.activation_checkpointing_interval": "every",
    "parallel.sequence_parallel": "rows cut",
    "passes": "passes",
    "gpus": "GPUs",
}
"""How columns are called in rows."""
GOALS = {"median": 0.06, "worst": 0.26}
"""Of the errors of all rows that are predicted."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A row of a table: seconds of a step, published and planned."""

    what: str
    published: float
    planned: float
    is_calibration: bool

    @property
    def error(self) -> float:
        """Planned too long is above 0."""
        return self.planned / self.published - 1


@functools.cache
def published() -> dict[str, Any]:
    """All published figures."""
    return yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))


def compare(table: dict[str, Any]) -> tuple[float, list[Comparison]]:
    """The efficiency that one row of a table gives, and all its rows."""
    kind = machine(table["gpu"])
    kind = kind.model_copy(update=table.get("machine", {}))
    rows = [_values(table, row) for row in table["rows"]]
    efficiency = calibrate(table, rows[table["calibrated_on"]], kind)
    found = []
    for number, values in enumerate(rows):
        planned = plan_of(table, values, kind, efficiency)
        what = _in_words(table, table["rows"][number])
        is_calibration = number == table["calibrated_on"]
        seconds = seconds_of(table, values, planned)
        found.append(Comparison(what, seconds, planned_seconds(table, planned, efficiency), is_calibration))
    return efficiency, found


def _in_words(table: dict[str, Any], row: list[Any]) -> str:
    """What tells a row from others: columns that are alike in all rows are left out, and what was measured."""
    numbers = [place for place, each in enumerate(zip(*table["rows"], strict=True)) if len(set(each)) > 1]
    names = {place: WORDS.get(name, name.rpartition(".")[2]) for place, name in enumerate(table["columns"])}
    return ", ".join(f"{names[place]} {row[place]}".strip() for place in numbers if place < len(row) - 1)


def _values(table: dict[str, Any], row: list[Any]) -> dict[str, Any]:
    return table["defaults"] | dict(zip(table["columns"], row, strict=True))


def calibrate(table: dict[str, Any], values: dict[str, Any], kind: Machine) -> float:
    """The efficiency at which a row takes as long as was published, by halving."""
    low, high = 0.05, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        planned = plan_of(table, values, kind, middle)
        low, high = (
            (middle, high)
            if planned_seconds(table, planned, middle) > seconds_of(table, values, planned)
            else (low, middle)
        )
    return low


def plan_of(table: dict[str, Any], values: dict[str, Any], kind: Machine, efficiency: float) -> Plan:
    """The plan of a row."""
    tree: dict[str, Any] = {"model": dict(table["models"][values["model"]]), "training": {"steps": 1}, "parallel": {}}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            tree[section][name] = value
    gpus, training = values["gpus"], tree["training"]
    if "passes" in values:
        ranks = gpus // tree["parallel"].get("tensor", 1)
        training["global_batch_size"] = values["passes"] * training["micro_batch_size"] * ranks
    if tree["parallel"].get("tensor", 1) == 1:
        tree["parallel"].pop("sequence_parallel", None)
    run = RunConfig.model_validate(tree | {"name": "run", "tokenizer": {"path": "none"}, "data": {"path": "none"}})
    return plan(run, gpus, kind, None, efficiency)


def planned_seconds(table: dict[str, Any], planned: Plan, efficiency: float) -> float:
    """Seconds of a planned step, with what the table's trainers do otherwise than ours.

    Where torch's checkpoints stop early, the last product of a block is not computed again. Where selective
    recomputation is of attention's core alone, the products around it are not. Where attention is not fused, its scores
    pass through memory: 13 bytes a pair and head forward, 19 backward.
    """
    run, kind = planned.run, planned.machine
    model, seconds = run.model, planned.speed.seconds
    tokens = run.training.global_batch_size * run.training.sequence_length / planned.num_gpus
    again = recomputed_layers(model, model.num_layers)
    saved = 0
    if table.get("stops_early") and model.activation_checkpointing == "full":
        saved = model.d_ff * model.d_model
    if table.get("core_only") and model.activation_checkpointing == "attention":
        saved = 2 * (model.num_heads + model.kv_heads) * model.head_size * model.d_model
    seconds -= tokens * again * 2 * saved / (kind.peak_flops * efficiency)
    if table.get("unfused"):
        passed = tokens * run.training.sequence_length * model.num_heads * (32 * model.num_layers + 13 * again)
        seconds += passed / (kind.memory_gb_per_s * 1e9 * BANDWIDTH)
    return seconds


def seconds_of(table: dict[str, Any], values: dict[str, Any], planned: Plan) -> float:
    """Seconds of a step that a row's figure stands for."""
    training = planned.run.training
    if "tokens_per_gpu" in values:
        return training.global_batch_size * training.sequence_length / (values["tokens_per_gpu"] * planned.num_gpus)
    if "tflops" in values:
        return operations(planned, table["counted"] == "all") / (values["tflops"] * 1e12 * planned.num_gpus)
    return values["seconds"]


def operations(planned: Plan, with_recomputed: bool) -> float:
    """Of a step, with all pairs of a row, those that a causal mask hides too, as many count them."""
    run, length = planned.run, planned.run.training.sequence_length
    samples = run.training.global_batch_size
    work = Work(length, length * length)
    again = recomputed_flops(run.model, work) if with_recomputed else 0
    return samples * (train_flops(run.model, planned.vocab_size, work) + again)


@functools.cache
def speeds() -> list[tuple[dict[str, Any], float, list[Comparison]]]:
    """All tables with their efficiencies and rows."""
    return [(table, *compare(table)) for table in published()["tables"]]


def predicted(table: dict[str, Any], rows: list[Comparison]) -> list[Comparison]:
    """The rows of a table that count: neither the one that gave the efficiency nor those that only inform."""
    return [row for row in rows if not row.is_calibration and "informs" not in table]


def worst(rows: list[Comparison]) -> Comparison:
    """The row that is farthest off."""
    return max(rows, key=lambda row: abs(row.error))


def main() -> int:
    """Shows what is asked for."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", action="store_true", help="show every row")
    options.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    args = options.parse_args()
    console = Console(width=140)
    shown = Table(title="Seconds of a step, planned against published", title_justify="left")
    for name in ("table", "rows", "efficiency", "median error", "worst", "its row"):
        shown.add_column(name, justify="left" if name in ("table", "its row") else "right")
    errors: list[float] = []
    for table, efficiency, rows in speeds():
        others = [row for row in rows if not row.is_calibration]
        errors += [abs(row.error) for row in predicted(table, rows)]
        median, last = statistics.median(abs(row.error) for row in others), worst(others)
        name = table["name"] + (" (informs)" if "informs" in table else "")
        shown.add_row(name, str(len(rows)), f"{efficiency:.2f}", f"{median:.1%}", f"{last.error:+.1%}", last.what)
        for row in rows if args.rows else ():
            mark = ", calibrated on" if row.is_calibration else ""
            console.print(f"  {row.what}: {row.published:.3f} s, planned {row.planned:.3f}, {row.error:+.1%}{mark}")
    console.print(shown)
    median, most = statistics.median(errors), max(errors)
    print(f"{len(errors)} rows predicted: median error {median:.1%}, worst {most:.1%}; ", end="")
    print(f"goals {GOALS['median']:.0%}, {GOALS['worst']:.0%}")
    return int(args.check and (median > GOALS["median"] or most > GOALS["worst"]))


if __name__ == "__main__":
    sys.exit(main())
