"""`shardline plan`: what a run will take on a number of GPUs, for people and for scripts."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from common.mistakes import Mistake
from launcher.config import load_config
from launcher.console import console, number
from training.plan.machines import machine
from training.plan.memory import FRAGMENTS, OVERHEAD_GB
from training.plan.plan import Plan, changes, plan, rounded, search
from training.plan.speed import EFFICIENCY

SHOWN = 8
"""Layouts that a search shows."""
BAR = 30
"""Columns of the picture of a GPU's memory."""


def make(
    config: Path,
    overrides: list[str],
    *,
    gpu: str,
    nodes: int,
    gpus: int | None = None,
    document_length: int | None = None,
    efficiency: float = EFFICIENCY,
    searching: bool = True,
) -> tuple[Plan, list[Plan]]:
    """The plan of a run, and layouts that fit, the fastest first; they are looked for if asked, or if it does not fit.

    ValueError when the GPUs cannot share the run.
    """
    if not 0 < efficiency <= 1:
        raise Mistake(f"--efficiency: {efficiency:g} is no share; expected more than 0 and at most 1")
    kind, run = machine(gpu), load_config(config, overrides)
    num_gpus = gpus or nodes * kind.gpus
    ours = plan(run, num_gpus, kind, document_length, efficiency)
    needed = searching or not ours.fits
    return ours, search(run, num_gpus, kind, document_length, efficiency) if needed else []


def parts(found: Plan) -> dict[str, int]:
    """Bytes of a GPU at the moment when it holds most, by part; what is not there then is left out."""
    memory = found.memory
    moments = memory.moments_of_a_step
    held = {"weights": memory.weights, "master weights": memory.master_weights, "moments": memory.moments}
    at_most = memory.parts_of_moments[max(moments, key=moments.__getitem__)]
    return {name: size for name, size in (held | at_most).items() if size}


def as_json(ours: Plan, better: list[Plan]) -> str:
    """Everything, for scripts."""
    return json.dumps(_facts(ours) | {"search": [_facts(each) for each in better[:SHOWN]]}, indent=1)


def _facts(found: Plan) -> dict[str, Any]:
    speed, memory = found.speed, found.memory
    return {
        "layout": found.layout,
        "gpus": found.num_gpus,
        "parameters": found.num_weights,
        "fits": found.fits,
        "memory_bytes": {
            **parts(found),
            "peak": memory.peak,
            "needed": round(memory.needed),
            "host": memory.host,
            "snapshot": memory.snapshot,
        },
        "flops_of_a_step": {"model": speed.model_flops, "hardware": speed.hardware_flops},
        "bytes_sent_of_a_step": speed.sent._asdict(),
        "seconds_of_a_step": {
            "arithmetic": speed.compute_seconds,
            "memory": speed.memory_seconds,
            "waiting": speed.exposed_seconds,
            "all": speed.seconds,
        },
        "tokens_per_second": found.tokens_per_second,
        "mfu": found.mfu,
        "days": found.days,
        "gpu_hours": found.gpu_hours,
    }


def show(ours: Plan, better: list[Plan], *, all_layouts: bool) -> None:
    """Tables for people."""
    size = number(float(ours.num_weights))
    console.print(f"{ours.run.name}: {size} parameters on {ours.num_gpus} GPU(s); memory of one of them:")
    console.print(_memory(ours))
    console.print("a step, and all of them:")
    console.print(_time(ours))
    verdict = "[green]it fits[/]" if ours.fits else "[bold red]it does not fit[/]"
    room = ours.machine.memory_gb * 1e9
    console.print(
        f"{verdict}: {ours.memory.needed / 1e9:.1f} of {room / 1e9:g} GB a GPU, "
        f"{FRAGMENTS - 1:.0%} lost between blocks and {OVERHEAD_GB:g} GB of CUDA and nccl counted"
    )
    if not better and not ours.fits:
        console.print("no other layout of these GPUs fits either; take more of them, or others")
    elif better:
        best = better[0]
        keys = " ".join(f"--set {key}={value}" for key, value in changes(ours, best).items())
        figures = f"{best.memory.needed / 1e9:.1f} GB, {best.speed.seconds:.3g} s a step"
        console.print(f"the fastest that fits: {keys or 'this one'}  ({figures})")
    if all_layouts:
        console.print("layouts that fit, the fastest first:")
        console.print(_layouts(better[:SHOWN]))


def _memory(found: Plan) -> Table:
    table = Table()
    table.add_column("part")
    table.add_column("GB", justify="right")
    table.add_column("of the GPU")
    room = found.machine.memory_gb * 1e9
    for name, size in parts(found).items():
        table.add_row(name, f"{size / 1e9:.2f}", "█" * round(min(size / room, 1.0) * BAR))
    table.add_section()
    table.add_row("at most", f"{found.memory.peak / 1e9:.2f}", f"{found.memory.peak / room:.0%}")
    if found.memory.host:
        table.add_row("in the host's memory instead", f"{found.memory.host / 1e9:.2f}", "")
    table.add_row("there too: copies for a checkpoint", f"{found.memory.snapshot / 1e9:.2f}", "")
    return table


def _time(found: Plan) -> Table:
    speed, steps = found.speed, found.run.training.steps
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "arithmetic of the model, PFLOP": f"{rounded(speed.model_flops / 1e15):g}",
        "with what is computed again, PFLOP": f"{rounded(speed.hardware_flops / 1e15):g}",
        "sent by a GPU: gradients, weights, GB": (
            f"{rounded(speed.sent.gradients / 1e9):g}, {rounded(speed.sent.weights / 1e9):g}"
        ),
        "sent by a GPU: layers, rows, GB": f"{rounded(speed.sent.layers / 1e9):g}, {rounded(speed.sent.rows / 1e9):g}",
        "seconds: arithmetic, memory, waiting": (
            f"{speed.compute_seconds:.3g}, {speed.memory_seconds:.3g}, {speed.exposed_seconds:.3g}"
        ),
        "tokens a second": f"{found.tokens_per_second:,.0f}",
        "MFU": f"{found.mfu:.0%}",
        f"days for {steps:,} steps": f"{rounded(found.days):g}",
        "GPU-hours": f"{found.gpu_hours:,.0f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _layouts(found: list[Plan]) -> Table:
    table = Table()
    for name in ("ZeRO", "tensor", "context", "micro-batch", "recomputed", "GB", "s a step", "MFU"):
        table.add_column(name, justify="right")
    for each in found:
        stage, samples, again, tensor, context = each.layout.values()
        figures = (f"{each.memory.needed / 1e9:.1f}", f"{each.speed.seconds:.3g}", f"{each.mfu:.0%}")
        table.add_row(str(stage), str(tensor), str(context), str(samples), again, *figures)
    return table
