"""RUN_DIR/metrics.prom: the last line of metrics for Prometheus, in the format of node_exporter's textfile collector.

prometheus.io/docs/instrumenting/exposition_formats; the file is replaced whole, as the collector asks for.
"""

import math
from collections.abc import Mapping
from pathlib import Path

FIGURES = {
    "step": ("counter", "Steps done."),
    "loss": ("gauge", "Loss of the last logged step, nats per target."),
    "grad_norm": ("gauge", "Norm of the gradient before clipping."),
    "lr": ("gauge", "Learning rate."),
    "tokens_per_second": ("gauge", "Tokens of all ranks per second since the last line of metrics."),
    "step_seconds": ("gauge", "Mean seconds of a step since the last line of metrics."),
    "data_seconds": ("gauge", "Mean seconds that a step waited for its batch."),
    "mfu": ("gauge", "Share of the arithmetic peak."),
    "memory_gb": ("gauge", "Peak memory of the rank that needs most, GB."),
    "tokens_consumed": ("counter", "Tokens trained on."),
    "samples_consumed": ("counter", "Samples trained on."),
    "slowest_ratio": ("gauge", "Own seconds of the slowest rank, in medians over all ranks."),
    "slowest_rank": ("gauge", "Which rank that is."),
    "start_goodput_ratio": ("gauge", "Share of the time since this start began that went into steps."),
    "time": ("gauge", "When the line was written, seconds since 1970."),
}
"""Figures that are shown, as `shardline_NAME`: their type and what they are."""


def exposition(figures: Mapping[str, object], run: str) -> str:
    """The figures in Prometheus's text format, labelled with the name of the run."""
    lines = []
    label = run.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    for name, (kind, words) in FIGURES.items():
        value = figures.get(name)
        if isinstance(value, int | float):
            lines += [f"# HELP shardline_{name} {words}", f"# TYPE shardline_{name} {kind}"]
            lines.append(f'shardline_{name}{{run="{label}"}} {_written(float(value))}')
    return "".join(f"{line}\n" for line in lines)


def _written(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(value) if math.isfinite(value) else ("+Inf" if value > 0 else "-Inf")


def write(folder: Path, figures: Mapping[str, object], run: str) -> None:
    """Replaces the run's file; it is not made durable, for it is old within seconds."""
    path = folder / "metrics.prom"
    aside = path.with_name(".metrics.prom.new")
    aside.write_text(exposition(figures, run), encoding="utf-8")
    aside.replace(path)
