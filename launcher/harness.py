"""EleutherAI's lm-eval over our models: tasks, prompts and figures are its own, likelihoods and texts ours.

    names, YAML files -> its tasks -> requests -> training/asking.py -> its figures -> TaskResult

The one place that imports it. A task's YAML may name Python code, which runs: it is a program of who gives it.
"""

import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.mistakes import Mistake, cut
from launcher.console import StageProgress, say
from training.asking import continued, of_continuations, of_texts
from training.text_model import TextModel

MOST_NEW_TOKENS = 256
"""Tokens of an answer where a task does not say how many, as in lm-eval."""
GREEDY = {"do_sample": (False,), "temperature": (0, 0.0), "num_beams": (1,), "top_k": (0, 1), "top_p": (0, 1.0, 1)}
"""Keys of generation by which nothing is sampled."""


class TaskResult(NamedTuple):
    """How a model did on a task."""

    samples: int
    """Documents it was asked about."""
    num_fewshot: int
    """Solved examples in each prompt."""
    metrics: dict[str, float]
    """Figures by the names that lm-eval gives them; their standard errors end in `_stderr`."""


def run(
    model: TextModel, tasks: Sequence[str], *, num_fewshot: int | None = None, limit: int | None = None
) -> dict[str, TaskResult]:
    """Result of each task, of each of a group's too.

    `tasks` are names of lm-eval's or YAML files; `limit` takes only so many documents of each. Raises ValueError when
    lm-eval is not installed, or when it knows no such task.
    """
    lm_eval = _library()
    chosen = [_config(Path(task)) if _is_file(task) else task for task in tasks]
    manager = lm_eval.tasks.TaskManager(include_defaults=any(isinstance(task, str) for task in chosen))
    for task in chosen:
        if isinstance(task, str):
            _check_name(task, manager.all_tasks)
    asked = _adapter(lm_eval, model)
    with contextlib.redirect_stdout(sys.stderr):  # it prints as it goes, and standard output may be for JSON
        found = lm_eval.evaluator.simple_evaluate(
            model=asked, tasks=chosen, num_fewshot=num_fewshot, limit=limit, task_manager=manager, log_samples=False
        )
    if asked.num_cut:
        say(
            f"  {asked.num_cut:,} of {asked.num_asked:,} contexts had more tokens than the {model.length} that the "
            "model reads at once, and lost their beginnings"
        )
    return {name: _result(found, name) for name in found["results"]}


def _library() -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval
        import lm_eval.api.model
        import lm_eval.evaluator
        import lm_eval.tasks
    except ModuleNotFoundError as error:
        raise Mistake(
            f"--tasks, --suite: {error.name} is not installed; pip install 'shardline[eval]', or give multiple-choice "
            "questions with --task"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def _adapter(lm_eval: Any, model: TextModel) -> Any:
    """lm-eval's interface to a model of ours."""

    class Ours(lm_eval.api.model.LM):
        num_asked = num_cut = 0

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            with StageProgress("asking") as progress:
                found = of_continuations(model, [request.args for request in requests], progress.update)
            self.num_asked += len(found)
            self.num_cut += sum(each.is_cut for each in found)
            return [(each.value, each.is_greedy) for each in found]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            with StageProgress("asking") as progress:
                return of_texts(model, [request.args[0] for request in requests], progress.update)

        def generate_until(self, requests: list[Any]) -> list[str]:
            return generated(model, [request.args for request in requests])

    return Ours()


def generated(model: TextModel, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Greedy answers to prompts, each with lm-eval's keys of generation. ValueError of a key that asks for more."""
    texts = [""] * len(requests)
    by_length: dict[int, list[int]] = {}
    for number, (_, keys) in enumerate(requests):
        by_length.setdefault(_num_new(keys), []).append(number)
    for num_new, numbers in by_length.items():
        prompts, stops = [requests[i][0] for i in numbers], [_stops(requests[i][1]) for i in numbers]
        for number, text in zip(numbers, continued(model, prompts, stops, num_new), strict=True):
            texts[number] = text
    return texts


def _num_new(keys: dict[str, Any]) -> int:
    for key, value in keys.items():
        if key in GREEDY and value not in GREEDY[key] and (key == "do_sample" or keys.get("do_sample")):
            raise Mistake(
                f"generation_kwargs.{key}: {value} samples, and answers are taken greedily here; set do_sample false"
            )
    return int(keys.get("max_gen_toks", keys.get("max_new_tokens", MOST_NEW_TOKENS)))


def _stops(keys: dict[str, Any]) -> list[str]:
    until = keys.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _config(file: Path) -> dict[str, Any]:
    """A task of a YAML file, whose own data files are looked for beside it first."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not file.is_file():
        raise Mistake(f"--tasks: {file}: no such file; give a YAML file of a task, or the name of one of lm-eval's")
    try:
        config: dict[str, Any] = load_yaml(file)
    except Exception as error:  # its loader, and the code that a task names, raise what they please
        raise Mistake(f"--tasks: {file}: lm-eval cannot read it ({cut(str(error), 300)})") from error
    if "task" not in config and "group" not in config:
        raise Mistake(f"--tasks: {file}: it has neither task nor group; name it with 'task: NAME'")
    keys = config.get("dataset_kwargs") or {}
    if "data_files" in keys:
        config["dataset_kwargs"] = {**keys, "data_files": _beside(keys["data_files"], file.absolute().parent)}
    return config


def _beside(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {key: _beside(value, folder) for key, value in files.items()}
    if isinstance(files, list):
        return [_beside(value, folder) for value in files]
    return str(folder / files) if (folder / str(files)).is_file() else files


def _check_name(name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else "give one of lm-eval's, or a YAML file"
        raise Mistake(f"--tasks: {cut(name)} is no task of lm-eval {_version()}; {hint}")


def _version() -> str:
    from importlib.metadata import version

    return version("lm-eval")


def _result(found: dict[str, Any], name: str) -> TaskResult:
    figures = found["results"][name]
    metrics = {
        key.removesuffix(",none"): float(value)
        for key, value in figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("sample_len", "samples")
    }
    counts = found.get("n-samples", {}).get(name, {})
    samples = counts.get("effective", figures.get("sample_len", 0))
    return TaskResult(int(samples), int(found.get("n-shot", {}).get(name) or 0), metrics)
