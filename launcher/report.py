"""report.html: one self-contained page about a run, drawn from the files in its folder.

metrics.jsonl + manifest.json + config.yaml -> charts (SVG), tiles, tables -> report.html
"""

import dataclasses
import itertools
import math
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from common.files import write_whole
from common.json_lines import NUMBER, Form, Record
from data_pipeline.manifest import Manifest
from launcher.config import to_yaml
from launcher.console import duration, number
from launcher.goodput import Goodput
from launcher.pages import template
from launcher.run_folder import RunFolder, metrics_of
from model.flops import num_parameters
from training.config import RunConfig

WIDTH, HEIGHT = 900, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 880, 16, 265
MAX_POINTS = 1000
DRAWN, LOSS = Form({"samples": int, "tokens": int, "epochs": NUMBER}), Form({"loss": NUMBER})


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart, in data coordinates."""

    name: str
    xs: list[float]
    ys: list[float]
    colour: str = "--accent"
    dashed: bool = False
    dots: bool = False


def write_report(config: RunConfig, sample: str = "") -> Path:
    """Writes the run's report.html and returns its path."""
    run_dir = config.run_dir
    lines = metrics_of(run_dir)
    steps = [line for line in lines if "loss" in line]
    evaluations = [{"step": line["step"], **line["evaluation"]} for line in lines if "evaluation" in line]
    manifest = Manifest.load(Path(config.data.path))
    spent = RunFolder.read(run_dir).goodput(time.time())
    page = template("report.html.j2").render(
        name=config.name,
        subtitle=_subtitle(config, manifest),
        tiles=_tiles(steps, evaluations),
        charts=_charts(steps, evaluations),
        tables=[
            ("Data", _data_rows(manifest)),
            ("Model", _model_rows(config, manifest)),
            ("Run", _run_rows(steps)),
            *([("Sources", rows)] if (rows := _source_rows(steps, evaluations)) else []),
            ("Time", _time_rows(spent)),
        ],
        spent=[(kind, 100 * seconds / spent.wall) for kind, seconds in spent.seconds.items() if seconds],
        sample=sample,
        config=to_yaml(config),
    )
    path = run_dir / "report.html"
    write_whole(path, page.encode())
    return path


def _subtitle(config: RunConfig, manifest: Manifest) -> str:
    parameters = num_parameters(config.model, config.model.vocab_size or manifest.vocab_size)
    tokens = manifest.num_tokens("train")
    return (
        f"{number(float(parameters))} parameters, {config.model.shape} shape, {config.objective.name} objective, "
        f"{number(float(tokens))} training tokens, {config.training.num_processes} ranks, "
        f"ZeRO {config.training.zero_stage}, {config.training.precision}"
    )


def _tiles(steps: list[Record], evaluations: list[Record]) -> list[tuple[str, str]]:
    tiles = [("steps", str(steps[-1]["step"]))] if steps else []
    tiles += [("training loss, nats", f"{loss:.3f}") for loss in _known(steps, "loss")[-1:]]
    if evaluations:
        last = evaluations[-1]
        tiles.append(("held-out loss, nats", f"{last['loss']:.3f}"))
        tiles.append(("below unigram entropy, nats", f"{last['unigram_entropy'] - last['loss']:.3f}"))
    if steps:
        tiles.append(("tokens per second, median", number(float(_median([s["tokens_per_second"] for s in steps])))))
        tiles += [("MFU, median", f"{_median(shares):.1%}")] if (shares := _known(steps, "mfu")) else []
    return tiles


def _charts(steps: list[Record], evaluations: list[Record]) -> list[dict[str, Any]]:
    if not steps:
        return []
    xs = [step["step"] for step in steps]
    loss = [Series("training loss", *_curve(steps, "loss"))]
    if evaluations:
        at = [line["step"] for line in evaluations]
        loss.append(Series("held-out loss", at, [e["loss"] for e in evaluations], "--second", dots=True))
        entropy = evaluations[-1]["unigram_entropy"]
        loss.append(Series("unigram entropy", [xs[0], xs[-1]], [entropy] * 2, "--soft", dashed=True))
    charts = [
        ("Loss (nats per token) by step", loss),
        ("Throughput (tokens per second) by step", [Series("tokens/s", *_curve(steps, "tokens_per_second"))]),
        ("Learning rate by step", [Series("learning rate", *_curve(steps, "lr"))]),
    ]
    return [chart(title, lines) for title, lines in charts if any(line.xs for line in lines)]


def chart(title: str, lines: list[Series]) -> dict[str, Any]:
    """The geometry of one chart: ticks, and every series as points of the drawing."""
    xs, ys = [x for line in lines for x in line.xs], [y for line in lines for y in line.ys]
    y_ticks = _ticks(min(ys, default=0), max(ys, default=1))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_at(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (RIGHT - LEFT), 1)

    def y_at(y: float) -> float:
        return round(BOTTOM - (y - y_low) / (y_high - y_low) * (BOTTOM - TOP), 1)

    drawn = []
    for index, line in enumerate(lines):
        stride = max(1, len(line.xs) // MAX_POINTS)
        points = [(x_at(x), y_at(y)) for x, y in itertools.islice(zip(line.xs, line.ys, strict=True), 0, None, stride)]
        drawn.append(
            {
                "name": line.name,
                "colour": line.colour,
                "dashed": line.dashed,
                "points": " ".join(f"{x},{y}" for x, y in points),
                "dots": points if line.dots else [],
                "label_at": TOP + 14 + 16 * index,
            }
        )
    return {
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": RIGHT,
        "bottom": BOTTOM,
        "series": drawn,
        "y_ticks": [{"at": y_at(y), "label": f"{y:,.6g}"} for y in y_ticks],
        "x_ticks": [{"at": x_at(x), "label": f"{x:,.6g}"} for x in _ticks(x_low, x_high) if x_low <= x <= x_high],
    }


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values from at or below `low` to at or above `high`."""
    size = max(abs(low), abs(high))
    size = size if size > 1e-100 else 1.0  # what is closer to 0 than any figure of a run is 0
    spread = high - low if high - low > 1e-9 * size else size
    power = 10.0 ** math.floor(math.log10(spread / about))
    step = next(power * m for m in (1, 2, 5, 10) if spread / (power * m) <= about)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _data_rows(manifest: Manifest) -> list[tuple[str, str]]:
    rows = []
    for split, shards in manifest.splits.items():
        documents, tokens = manifest.num_documents(split), manifest.num_tokens(split)
        rows.append((split, f"{documents:,} documents, {tokens:,} tokens, {len(shards)} shards"))
    rows.append(("vocabulary", f"{manifest.vocab_size:,} pieces, tokens stored as {manifest.dtype}"))
    rows += [(name.replace("_", " "), f"{count:,}") for name, count in manifest.counts.items()]
    return [*rows, ("fingerprint", manifest.fingerprint)]


def _model_rows(config: RunConfig, manifest: Manifest) -> list[tuple[str, str]]:
    model, vocab_size = config.model, config.model.vocab_size or manifest.vocab_size
    positions = f"RoPE {model.rope_theta:g}" if model.positions == "rope" else f"positions {model.positions}"
    depth = f"{model.num_layers}" if not model.encoder_layers else f"{model.encoder_layers} + {model.num_layers}"
    return [
        ("shape and objective", f"{model.shape}, {config.objective.name}"),
        ("parameters", f"{num_parameters(model, vocab_size):,}"),
        ("blocks", f"{depth} of width {model.d_model}, {model.activation} {model.d_ff}, {model.norm}, {positions}"),
        ("attention", f"{model.num_heads} query heads, {model.kv_heads} key/value heads of {model.head_size}"),
        ("vocabulary", f"{vocab_size:,}, embeddings {'tied' if model.tie_embeddings else 'untied'}"),
    ]


def _run_rows(steps: list[Record]) -> list[tuple[str, str]]:
    if not steps:
        return []
    numbers = [0, *(step["step"] for step in steps)]
    seconds = sum(s["step_seconds"] * (b - a) for s, a, b in zip(steps, numbers, numbers[1:], strict=False))
    return [
        *[("tokens trained on", f"{tokens:,}") for tokens in _known(steps, "tokens_consumed")[-1:]],
        ("time in steps", duration(seconds)),
        *[("peak memory of a rank", f"{memory:.2f} GB") for memory in sorted(_known(steps, "memory_gb"))[-1:]],
        *[("steps passed over", f"{skipped:.0f}") for skipped in [sum(_known(steps, "skipped"))] if skipped],
        *[("gradient norm, last", f"{norm:.3f}") for norm in _known(steps, "grad_norm")[-1:]],
    ]


def _source_rows(steps: list[Record], evaluations: list[Record]) -> list[tuple[str, str]]:
    """What was drawn from each source of a mix, and its held-out loss."""
    last, held_out = (steps or [{}])[-1], (evaluations or [{}])[-1].get("sources", {})
    drawn = {name: of for name, of in last.get("sources", {}).items() if DRAWN.fault(of) == ""}
    total = sum(of["samples"] for of in drawn.values())
    return [
        (
            name,
            f"{of['tokens']:,} tokens, {of['samples'] / max(total, 1):.1%} of all samples, {of['epochs']:.2f} epochs"
            + (f", held-out loss {held_out[name]['loss']:.3f}" if LOSS.fault(held_out.get(name)) == "" else ""),
        )
        for name, of in drawn.items()
    ]


def _time_rows(spent: Goodput) -> list[tuple[str, str]]:
    """Each kind of time and its share, parts of starts, interruptions."""
    rows = [
        (kind, f"{duration(seconds)}, {seconds / spent.wall:.1%}") for kind, seconds in spent.seconds.items() if seconds
    ]
    rows += [(f"starting: {what}", duration(seconds)) for what, seconds in spent.starting.items()]
    for each in spent.interruptions:
        at = f"interrupted at {datetime.fromtimestamp(each.time):%d %b %H:%M:%S}"
        rows.append(
            (at, f"{each.cause}; cost {duration(each.seconds)}, {duration(each.lost)} of it steps trained again")
        )
    return rows


def _known(steps: list[Record], key: str) -> list[float]:
    """A figure of the steps that have it."""
    return _curve(steps, key)[1]


def _curve(steps: list[Record], key: str) -> tuple[list[float], list[float]]:
    """A figure over the steps that have it."""
    known = [step for step in steps if step.get(key) is not None and math.isfinite(step[key])]
    return [step["step"] for step in known], [step[key] for step in known]


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
