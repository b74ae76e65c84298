"""What the run measures of itself: `metrics.jsonl`, and the same figures for TensorBoard.

A line of training has step, loss, grad_norm, lr, tokens, targets, samples_consumed, tokens_consumed, tokens_per_second,
tokens_per_second_per_rank, mfu, {step,data,forward,backward,optimizer}_seconds, memory_gb, padding (share of
positions), documents_cut, documents_vanished (too short to hold a target) and tokens_left_out (for which a row had no
room). loss and grad_norm are of that step; the rest is a mean over the steps since the last line, or a sum for what is
cut, vanished or left out; null for what is no number. skipped, where there are some, are the steps that were passed
over. multi_token_loss, where there are further depths, is theirs together, per target of theirs. slowest_ratio,
slowest_rank and slowest_node, where there are several ranks, are of the one whose forward passes took longest, in
medians over the ranks. tokens are those of all streams, an encoder's too; targets are the tokens that the loss is taken
on. sources, where a run mixes several, has samples, tokens and epochs drawn by the name of each, by the order that is
computed, so that no rank is asked. A line of evaluation has step and `evaluation`: loss, unigram_entropy, perplexity,
targets, seconds, and the same by objective in `objectives` and by source in `sources` where there are several.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import naming, sync_file, write_whole
from common.json_lines import append_line, examine
from training.evaluation import EvaluationResult
from training.lines import KEPT
from training.step import StepResult

TAGS = {
    "loss": "train/loss",
    "multi_token_loss": "train/multi_token_loss",
    "grad_norm": "train/grad_norm",
    "lr": "train/learning_rate",
    "skipped": "train/skipped",
    "tokens_per_second": "perf/tokens_per_second",
    "mfu": "perf/mfu",
    "step_seconds": "perf/step_seconds",
    "data_seconds": "perf/data_seconds",
    "forward_seconds": "perf/forward_seconds",
    "backward_seconds": "perf/backward_seconds",
    "optimizer_seconds": "perf/optimizer_seconds",
    "memory_gb": "perf/memory_gb",
    "slowest_ratio": "perf/slowest_ratio",
    "targets": "data/targets",
    "padding": "data/padding",
    "documents_cut": "data/documents_cut",
    "documents_vanished": "data/documents_vanished",
    "tokens_left_out": "data/tokens_left_out",
    "samples_consumed": "data/samples_consumed",
    "tokens_consumed": "data/tokens_consumed",
}
"""TensorBoard's name of each figure."""


class Meter:
    """Gathers steps between two lines of metrics, and makes the line."""

    def __init__(self, num_ranks: int, peak_flops: float | None):
        self.num_ranks = num_ranks
        self.peak_flops = peak_flops
        self.steps: list[tuple[StepResult, float, float]] = []

    def add(self, result: StepResult, data_seconds: float, flops: float) -> None:
        """Takes a step in: what came of it, the wait for its data, and its operations over all ranks."""
        self.steps.append((result, data_seconds, flops))

    def line(self) -> dict[str, float | None]:
        """Figures since the last call, without what the caller knows better (step, lr, totals, memory)."""
        results = [result for result, _, _ in self.steps]
        num = len(results)
        data = sum(seconds for _, seconds, _ in self.steps)
        elapsed = data + sum(result.seconds["step"] for result in results)
        tokens = sum(result.counts.tokens + result.counts.encoder_tokens for result in results)
        padding = sum(result.counts.padding for result in results)
        flops = sum(flops for _, _, flops in self.steps)
        speed = tokens / elapsed
        line: dict[str, float | None] = {
            **results[-1].figures(),
            "tokens": tokens / num,
            "targets": sum(result.counts.targets for result in results) / num,
            "tokens_per_second": speed,
            "tokens_per_second_per_rank": speed / self.num_ranks,
            "mfu": flops / (elapsed * self.peak_flops * self.num_ranks) if self.peak_flops else None,
            "step_seconds": elapsed / num,
            "data_seconds": data / num,
        }
        for part in ("forward", "backward", "optimizer"):
            line[f"{part}_seconds"] = sum(result.seconds[part] for result in results) / num
        line["padding"] = padding / (tokens + padding)
        for name in ("documents_cut", "documents_vanished", "tokens_left_out"):
            line[name] = sum(getattr(result.counts, name) for result in results)
        if skipped := sum(result.held for result in results):
            line["skipped"] = skipped
        self.steps.clear()
        return line


class MetricsWriter:
    """Writes lines of metrics on rank 0, beginning after `step`: later lines of an earlier attempt are taken out.

    `gaps` says in sentences what earlier attempts should have left and did not.
    """

    def __init__(self, run_dir: Path, step: int, log_interval: int = 1):
        from torch.utils.tensorboard import SummaryWriter  # seconds to import, and only rank 0 needs it

        self.path = run_dir / "metrics.jsonl"
        self.gaps = forget_after(self.path, step, log_interval)
        self.folder = run_dir / "tensorboard"
        with naming(self.folder):
            self.board = SummaryWriter(self.folder, purge_step=step + 1 if step else None)

    def training(self, line: dict[str, Any]) -> None:
        """Writes figures of training; `line` holds `step`."""
        append_line(self.path, line)
        figures = {tag: line[name] for name, tag in TAGS.items() if line.get(name) is not None}
        for source, drawn in line.get("sources", {}).items():
            figures |= {f"data/{name}/{source}": value for name, value in drawn.items()}
        self._show(figures, line["step"])

    def evaluation(
        self,
        step: int,
        result: EvaluationResult,
        objectives: Mapping[str, EvaluationResult],
        sources: Mapping[str, EvaluationResult],
    ) -> None:
        """Writes figures of an evaluation after `step`: of the run's own objective, of others, and by source."""
        facts = result.figures()
        groups = {"objectives": objectives, "sources": sources}
        told = {key: {name: of.figures() for name, of in group.items()} for key, group in groups.items() if group}
        append_line(self.path, {"step": step, "evaluation": facts | told})
        by_tag = {f"eval/{name}": of for name, of in told.get("objectives", {}).items()}
        by_tag |= {f"eval/source/{name}": of for name, of in told.get("sources", {}).items()}
        told_of = {"eval": facts, **by_tag}.items()
        shown = ("loss", "perplexity", "unigram_entropy")
        self._show({f"{prefix}/{name}": figures[name] for prefix, figures in told_of for name in shown}, step)

    def flush(self) -> None:
        """Puts lines on the disk and hands TensorBoard's to the operating system."""
        if self.path.exists():
            sync_file(self.path)
        with naming(self.folder):
            self.board.flush()

    def close(self) -> None:
        """Ends TensorBoard's file."""
        with naming(self.folder):
            self.board.close()

    def _show(self, figures: Mapping[str, float], step: int) -> None:
        """Gives TensorBoard's own thread figures by their tags; what that could not write it says at a later call."""
        with naming(self.folder):
            for tag, value in figures.items():
                self.board.add_scalar(tag, value, step)


def forget_after(path: Path, step: int, log_interval: int = 1) -> list[str]:
    """Takes lines of steps after `step`, and torn ones, out of a metrics file; says what is missing before `step`."""
    found = examine(path, KEPT)
    kept = [record for record in found.records if record["step"] <= step]
    if path.exists():
        write_whole(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    last = max((record["step"] for record in kept if "loss" in record), default=0)
    due = step - step % log_interval
    if last < due:
        steps = f"step {due}" if last + 1 == due else f"steps {last + 1} to {due}"
        return [*found.left_out, f"{path}: it has no figures of {steps}, which an earlier start trained"]
    return found.left_out
