"""`shardline evaluate`: how a run's newest checkpoint or an exported folder answers questions and tasks.

--task FILE.jsonl                -> multiple choice of our own (training/scoring.py)
--tasks NAME_OR_YAML, --suite    -> EleutherAI's lm-eval (harness.py)
results -> a table, JSON; of a run also evaluations.jsonl and TensorBoard
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import configs
from common.files import naming
from common.json_lines import append_line
from common.mistakes import Mistake, cut
from launcher import text_models
from launcher.console import StageProgress, console, say

if TYPE_CHECKING:
    from launcher.harness import TaskResult
    from training.scoring import ChoiceResult

SUITES = Path(configs.__file__).parent / "evaluation"
EVALUATIONS = "evaluations.jsonl"
"""Results of a run's checkpoints, one task a line."""


@dataclasses.dataclass(frozen=True)
class Results:
    """What came of an evaluation."""

    where: Path
    name: str
    """The checkpoint or the class that was asked."""
    step: int | None
    questions: "Mapping[str, ChoiceResult]"
    """By file."""
    tasks: "Mapping[str, TaskResult]"
    """By name."""


def evaluate(
    where: Path,
    questions: Sequence[Path] = (),
    tasks: Sequence[str] = (),
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    length: int | None = None,
) -> Results:
    """Asks the model of a run or a folder: files of questions, and tasks of lm-eval by name or file.

    `limit` takes only so many documents of each task; `length` is in place of the tokens the model reads at once.
    Raises ValueError when there is no model, nothing to ask, a file is not right, or the tokenizer is not that of the
    training.
    """
    from data_pipeline.questions import read_questions
    from training.scoring import score_questions

    if not questions and not tasks:
        raise Mistake("nothing to ask; give --task FILE.jsonl, --tasks NAME_OR_YAML or --suite small")
    asked = {str(file): read_questions(file) for file in questions}
    found = text_models.load(where, length)
    answers = {}
    for file, of_file in asked.items():
        with StageProgress(f"asking {file}") as progress:
            answers[file] = score_questions(found.model, of_file, progress.update)
    results: Mapping[str, TaskResult] = {}
    if tasks:
        from launcher import harness

        results = harness.run(found.model, tasks, num_fewshot=num_fewshot, limit=limit)
    return Results(where, found.name, found.step, answers, results)


def suite(name: str) -> list[str]:
    """The task files of a suite that is part of the package. ValueError when there is none of that name."""
    known = sorted(path.name for path in SUITES.iterdir() if path.is_dir())
    if name not in known:
        raise Mistake(f"--suite: {cut(name)} is none; there is {', '.join(known)}")
    return [str(path) for path in sorted((SUITES / name).glob("*.yaml"))]


def record(results: Results, *, limit: int | None = None) -> None:
    """Keeps the results of lm-eval's tasks in the folder of a run; an exported folder is left as it is."""
    if results.step is None or not results.tasks:
        return
    from torch.utils.tensorboard import SummaryWriter

    for task, result in results.tasks.items():
        line: dict[str, Any] = {"step": results.step, "task": task, **result._asdict(), "limit": limit}
        append_line(results.where / EVALUATIONS, line | {"time": time.time()})
    folder = results.where / "tensorboard"
    with naming(folder), SummaryWriter(folder) as board:
        for task, result in results.tasks.items():
            for metric, value in result.metrics.items():
                board.add_scalar(f"tasks/{task}/{metric}", value, results.step)


def as_values(results: Results) -> dict[str, Any]:
    """All results by file and task, for JSON."""
    files = {name: dataclasses.asdict(result) for name, result in results.questions.items()}
    return files | {name: result._asdict() for name, result in results.tasks.items()}


def show(results: Results) -> None:
    """Prints the results as tables."""
    from rich.markup import escape
    from rich.table import Table

    if results.questions:
        table = Table(box=None, header_style="dim")
        for column in ("task", "questions", "accuracy", "accuracy per byte", "chance"):
            table.add_column(column, justify="left" if column == "task" else "right")
        for task, choice in results.questions.items():
            shares = (choice.accuracy, choice.accuracy_per_byte, choice.chance)
            table.add_row(escape(task), f"{choice.questions:,}", *(f"{share:.1%}" for share in shares))
        console.print(table)
    if results.tasks:
        table = Table(box=None, header_style="dim")
        for column in ("task", "documents", "shots", "metric", "value", "+-"):
            table.add_column(column, justify="left" if column in ("task", "metric") else "right", overflow="fold")
        for task, result in results.tasks.items():
            for row in _rows(result):
                table.add_row(escape(task), f"{result.samples:,}", str(result.num_fewshot), *map(escape, row))
        console.print(table)
    if results.step is not None and results.tasks:
        say(f"{results.name} of {results.where}; kept in {results.where / EVALUATIONS}")


def _rows(result: "TaskResult") -> list[tuple[str, str, str]]:
    """Metric, value and standard error of each figure."""
    errors = {name.replace("_stderr", ""): value for name, value in result.metrics.items() if "_stderr" in name}
    return [
        (name, f"{value:.4g}", f"{errors[name]:.2g}" if name in errors else "")
        for name, value in result.metrics.items()
        if "_stderr" not in name
    ]
