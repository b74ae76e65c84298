"""What benchmarks/save.py makes of its figures."""

import pytest

from benchmarks.save import INTERVAL, rows_of


def a_round(machine: float, **figures: float) -> dict[str, float]:
    """A round on a machine so many times as slow as another."""
    usual = {"never": 20.0, "every": 20.5, "awaited": 6.0, "lasted": 6.5, "full": 3.0, "copied": 1.0, "stalled": 0.5}
    usual |= {"dd": 2.2, **figures}
    return {name: machine * seconds for name, seconds in usual.items()} | {"bytes": 5e9}


def test_ratios_are_those_within_rounds_however_the_machine_drifts():
    stall, commit, throughput, lasts, full = rows_of([a_round(1.0), a_round(4.0), a_round(1.5)], stage=1)
    assert stall.ratio == pytest.approx(12) and stall.met
    assert commit.ratio == pytest.approx(1.1) and commit.met
    assert throughput.ratio == pytest.approx(20 / 20.5) and throughput.met
    assert lasts.ratio == pytest.approx(6.5 / (20.0 / INTERVAL)) and lasts.met
    assert full.ratio == pytest.approx(6) and full.met, "this one only informs"


def test_each_goal_can_be_missed():
    bad = [a_round(1.0, every=22.0, stalled=1.0, dd=1.5, lasted=4.0)]
    assert [row.met for row in rows_of(bad, stage=2)] == [False, False, False, False, True]
