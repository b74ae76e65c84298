"""docs/plan.md has the tables that its command writes; what they are written from meets the goals of the benchmarks."""

import json
import statistics

import pytest

from benchmarks import plan_formulas, plan_memory, plan_tables, plan_world


def test_the_page_has_the_tables_that_its_command_writes():
    page = plan_tables.DOCUMENT.read_text(encoding="utf-8")
    assert plan_tables.filled(page) == page, "python -m benchmarks.plan_tables"


@pytest.mark.parametrize("row", plan_tables.on_gpu(), ids=lambda row: row[0])
def test_a_step_on_a_gpu_took_what_the_plan_says(row):
    name, gigabytes, seconds, found = row
    assert found.memory.peak / 1e9 == pytest.approx(gigabytes, rel=0.03)
    assert found.speed.seconds == pytest.approx(seconds, rel=0.07)
    assert f"| {gigabytes} |" in (plan_tables.DOCUMENT.parent / "gpu.md").read_text(encoding="utf-8"), name


def test_ranks_that_were_measured_took_what_the_plan_says():
    rows = json.loads(plan_memory.MEASURED.read_text(encoding="utf-8"))
    assert {row["name"] for row in rows} == set(plan_memory.CASES)
    errors = [abs(error) for error in plan_memory.errors_of(rows)]
    assert statistics.median(errors) <= plan_memory.GOALS["median"] and max(errors) <= plan_memory.GOALS["worst"]


def test_published_runs_took_what_the_plan_says():
    errors = [abs(row.error) for table, _, rows in plan_world.speeds() for row in plan_world.predicted(table, rows)]
    assert len(errors) > 140
    assert statistics.median(errors) <= plan_world.GOALS["median"] and max(errors) <= plan_world.GOALS["worst"]


def test_efficiencies_of_one_kind_of_gpu_are_alike_whoever_published_them():
    found = {}
    for table, efficiency, _ in plan_world.speeds():
        if "informs" not in table:
            found.setdefault(table["gpu"], []).append(efficiency)
    for of_gpu in found.values():
        assert len(of_gpu) > 1 and max(of_gpu) < 1.15 * min(of_gpu)


def test_formulas_of_papers_come_out():
    assert all(line.ours == pytest.approx(line.theirs, rel=0.015) for line in plan_formulas.zero())
    assert all(line.ours == pytest.approx(line.theirs, rel=0.002) for line in plan_formulas.left_by_a_block())
    assert all(line.ours == pytest.approx(line.theirs, rel=0.005) for line in plan_formulas.operations())
