"""Writes the tables of docs/plan.md from what was measured, what others have published, and what the plan says today.

    python -m benchmarks.plan_tables [--check]

Measured are benchmarks/measured_memory.json (benchmarks.plan_memory --write) and our rows on a GPU; published is
benchmarks/published.yaml. It starts no rank and needs no GPU. `--check` writes nothing, and exits 1 when the document
is not what it would write.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import plan_formulas, plan_memory, plan_world
from training.config import RunConfig
from training.plan.machines import machine
from training.plan.plan import Plan, plan
from training.plan.speed import EFFICIENCY

DOCUMENT = Path(__file__).parents[1] / "docs" / "plan.md"
SHOWN = 12
"""Rows of a published table that are shown one by one; of longer ones what their errors are."""
BASE = {"num_layers": 24, "d_model": 2048, "num_heads": 16, "d_ff": 5504, "tie_embeddings": True}
DOCUMENT_LENGTH = 620
"""Tokens of a document on average in our rows on a GPU."""


def on_gpu() -> list[tuple[str, float, float, Plan]]:
    """Our own rows on one H200: name, GB at most, seconds of a step, and the plan."""
    rows = []
    for name, keys, gigabytes, seconds in plan_world.published()["on_gpu"]["rows"]:
        sizes = {"steps": 10, "sequence_length": 2048, "global_batch_size": 16, "micro_batch_size": 8}
        tree = {"model": BASE | keys.get("model", {}), "training": sizes | keys.get("training", {})}
        tree |= {"optimizer": keys.get("optimizer", {}), "data": {"path": "none"}}
        run = RunConfig.model_validate(tree | {"name": "run", "tokenizer": {"path": "none"}})
        rows.append((name, gigabytes, seconds, plan(run, 1, machine("h200"), DOCUMENT_LENGTH, EFFICIENCY)))
    return rows


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_gpu() -> str:
    """Memory and time on one GPU."""
    head = ["one H200, 1,280 M parameters", "GB at most", "planned", "off by", "seconds of a step", "planned", "off by"]
    rows = []
    for name, gigabytes, seconds, found in on_gpu():
        peak, planned = found.memory.peak / 1e9, found.speed.seconds
        memory = [f"{gigabytes}", f"{peak:.1f}", _off(peak / gigabytes - 1)]
        rows.append([name, *memory, f"{seconds:.3f}", f"{planned:.3f}", _off(planned / seconds - 1)])
    return table(head, rows)


def of_ranks() -> str:
    """Memory of ranks on CPUs."""
    rows = json.loads(plan_memory.MEASURED.read_text(encoding="utf-8"))
    errors = plan_memory.errors_of(rows)
    lines = []
    for row, error in zip(rows, errors, strict=True):
        size, moment = plan_memory.planned(row["name"], row)
        lines.append([row["name"], f"{row['peak'] / 1e6:.0f}", f"{size / 1e6:.0f}", _off(error), moment])
    found = table(["ranks on CPUs", "MB at most", "planned", "off by", "highest"], lines)
    return f"{found}\n\n{_summary(errors)}"


def of_world() -> str:
    """Seconds of others."""
    lines, errors = [], []
    for facts, efficiency, rows in plan_world.speeds():
        counted = plan_world.predicted(facts, rows)
        errors += [row.error for row in counted]
        if not counted:
            lines.append([facts["name"], str(len(rows)), "-", "-", f"not predicted: {facts['informs']}"])
            continue
        last = plan_world.worst(counted)
        median = statistics.median(abs(row.error) for row in counted)
        lines.append([facts["name"], str(len(rows)), f"{efficiency:.2f}", f"{median:.1%}", _off(last.error)])
    found = table(["published", "rows", "efficiency, from one row", "median error of the others", "worst"], lines)
    return f"{found}\n\n{_summary(errors)}"


def of_rows() -> str:
    """Rows of the shorter tables, one by one."""
    lines = []
    for facts, _, rows in plan_world.speeds():
        if len(rows) > SHOWN or "informs" in facts:
            continue
        for row in rows:
            error = "gave the efficiency" if row.is_calibration else _off(row.error)
            lines.append([facts["name"], row.what, f"{row.published:.3g}", f"{row.planned:.3g}", error])
    return table(["published", "row", "seconds of a step", "planned", "off by"], lines)


def of_formulas() -> str:
    """Formulas of papers."""
    lines = []
    groups = {
        "ZeRO's table: GB of a GPU": plan_formulas.zero(),
        "left by a block, bytes of each of its T x M": plan_formulas.left_by_a_block(),
        "operations": plan_formulas.operations(),
    }
    for name, group in groups.items():
        lines += [
            [name, row.what, f"{row.theirs:.4g}", f"{row.ours:.4g}", _off(row.ours / row.theirs - 1)] for row in group
        ]
    return table(["", "", "theirs", "ours", "off by"], lines)


def _off(error: float) -> str:
    return f"{100 * error:+.1f} %"


def _summary(errors: list[float]) -> str:
    sizes = [abs(error) for error in errors]
    return f"{len(sizes)} rows: median error {statistics.median(sizes):.1%}, worst {max(sizes):.1%}."


SECTIONS: dict[str, Callable[[], str]] = {
    "gpu": of_gpu,
    "ranks": of_ranks,
    "world": of_world,
    "rows": of_rows,
    "formulas": of_formulas,
}


def filled(document: str) -> str:
    """The document with its tables as they are today, each between a line that names it and a line that ends it."""
    for name, make in SECTIONS.items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        assert len(pattern.findall(document)) == 1, f"one table is named {name} in {DOCUMENT}"
        before, after = pattern.split(document)
        document = f"{before}{begin}{make()}\n{end}{after}"
    return document


def main() -> int:
    """Writes the tables or checks them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="write nothing; exit 1 when the document is another")
    args = options.parse_args()
    before = DOCUMENT.read_text(encoding="utf-8")
    after = filled(before)
    if not args.check:
        DOCUMENT.write_text(after, encoding="utf-8")
    return int(args.check and before != after)


if __name__ == "__main__":
    sys.exit(main())
