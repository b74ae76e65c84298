"""The geometry of the report's charts."""

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launcher.report import BOTTOM, LEFT, RIGHT, TOP, Series, _source_rows, chart, write_report
from launcher.status import epochs_of
from tests.training.runs import tiny_config, write_dataset

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=50))
def test_every_point_lies_inside_the_axes(ys):
    drawn = chart("title", [Series("line", list(range(len(ys))), ys)])
    for point in drawn["series"][0]["points"].split():
        x, y = map(float, point.split(","))
        assert LEFT <= x <= RIGHT
        assert TOP - 0.1 <= y <= BOTTOM + 0.1


@given(finite, finite)
@example(0.0, 5e-324)
def test_ticks_are_evenly_spaced_and_span_the_values(a, b):
    ticks = [tick["at"] for tick in chart("title", [Series("line", [0, 1], [a, b])])["y_ticks"]]
    gaps = {round(low - high) for low, high in itertools.pairwise(ticks)}
    assert max(gaps) - min(gaps) <= 1, "rounded to whole units"
    assert (ticks[0], ticks[-1]) == (BOTTOM, TOP)


def test_a_line_with_too_many_points_is_thinned():
    drawn = chart("title", [Series("line", list(range(100_000)), [1.0] * 100_000)])
    assert len(drawn["series"][0]["points"].split()) < 2500


@pytest.mark.parametrize(
    "more",
    [
        b"",
        b'{"loss": \xff, "step": 5}\n',
        b'{"step": null, "loss": null}\n',
        b'{"step": 3, "loss": 1.0}\n{"st',
        b'{"step": 3, "evaluation": {}}\n',
    ],
)
def test_a_page_is_drawn_of_whatever_lines_are_whole(tmp_path, more):
    config = tiny_config(write_dataset(tmp_path / "data"), runs_dir=str(tmp_path / "runs"))
    config.run_dir.mkdir(parents=True)
    lines = [{"step": step, "loss": 5.0, "tokens_per_second": 9.0, "step_seconds": 0.1} for step in (1, 2)]
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    (config.run_dir / "metrics.jsonl").write_bytes(whole.encode() + more)
    page = write_report(config).read_text()
    assert "<svg" in page
    assert "5.000" in page


def test_sources_of_a_mix_are_told_and_lines_that_are_none_are_passed_over():
    web = {"samples": 30, "tokens": 960, "epochs": 0.25}
    steps = [{"sources": {"web": web, "books": {"samples": 10, "tokens": 320, "epochs": 2.5}, "odd": {"samples": "x"}}}]
    evaluations = [{"sources": {"web": {"loss": 2.5}, "books": {"loss": None}}}]
    assert _source_rows(steps, evaluations) == [
        ("web", "960 tokens, 75.0% of all samples, 0.25 epochs, held-out loss 2.500"),
        ("books", "320 tokens, 25.0% of all samples, 2.50 epochs"),
    ]
    assert _source_rows([{"loss": 1.0}], []) == _source_rows([], []) == []
    assert epochs_of({**steps[0]}) == {"web": 0.25, "books": 2.5} and epochs_of({}) == {}
