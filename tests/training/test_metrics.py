"""Figures of steps and the files they go to."""

import errno
import json
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.mistakes import sentence
from tests.training.stand_ins import result_of
from training.evaluation import EvaluationResult
from training.metrics import TAGS, Meter, MetricsWriter, forget_after
from training.step import StepCounts, StepResult


def result(step_seconds: float = 1.0, tokens: int = 900, padding: int = 100, loss: float = 5.0) -> StepResult:
    counts = StepCounts(targets=tokens, tokens=tokens, padding=padding, documents_cut=3, pairs=5000, stops=0)
    return result_of(loss, counts=counts, step=step_seconds)


def test_mfu_is_operations_over_what_all_ranks_could_have_done():
    meter = Meter(num_ranks=4, peak_flops=1000.0)
    meter.add(result(step_seconds=1.5), data_seconds=0.5, flops=4000.0)
    assert meter.line()["mfu"] == pytest.approx(4000 / (2.0 * 1000 * 4))


def test_a_line_means_over_its_steps_and_then_starts_anew():
    meter = Meter(num_ranks=2, peak_flops=None)
    meter.add(result(1.0, tokens=900, padding=100, loss=6.0), 0.0, 1.0)
    meter.add(result(2.0, tokens=700, padding=300, loss=5.0), 1.0, 1.0)
    line = meter.line()
    assert line["tokens_per_second"] == pytest.approx(1600 / 4)
    assert line["tokens_per_second_per_rank"] == pytest.approx(200)
    assert (line["step_seconds"], line["data_seconds"], line["padding"]) == pytest.approx((2.0, 0.5, 0.2))
    assert (line["loss"], line["documents_cut"], line["mfu"]) == (5.0, 6, None)
    assert (line["tokens"], line["targets"]) == (800, 800)
    meter.add(result(1.0), 0.0, 1.0)
    assert meter.line()["documents_cut"] == 3


def test_tokens_of_an_encoder_count_and_what_is_only_read_is_no_target():
    meter = Meter(num_ranks=1, peak_flops=None)
    counts = StepCounts(targets=30, tokens=40, encoder_tokens=100, padding=60)
    meter.add(result_of(counts=counts, step=2.0), 0.0, 1.0)
    line = meter.line()
    assert (line["tokens"], line["targets"], line["tokens_per_second"], line["padding"]) == (140, 30, 70, 0.3)


def test_the_loss_of_further_tokens_is_told_by_itself_where_there_is_one():
    meter = Meter(num_ranks=1, peak_flops=None)
    meter.add(result(), 0.0, 1.0)
    assert "multi_token_loss" not in meter.line()
    counts = StepCounts(targets=10, tokens=12, further_targets=15)
    meter.add(result_of(loss=4.0, counts=counts, further=(48.0, 42.0)), 0.0, 1.0)
    line = meter.line()
    assert (line["loss"], line["multi_token_loss"]) == (4.0, 6.0)
    assert TAGS["multi_token_loss"] == "train/multi_token_loss"


def test_steps_that_were_passed_over_are_counted_and_what_is_no_number_is_null():
    meter = Meter(num_ranks=1, peak_flops=None)
    meter.add(result(), 0.0, 1.0)
    assert "skipped" not in meter.line()
    for loss in (float("nan"), 5.0, float("inf")):
        counts = StepCounts(targets=10, tokens=12, further_targets=15)
        meter.add(result_of(loss, float("nan"), counts, further=(loss,), held=True), 0.0, 1.0)
    line = meter.line()
    assert (line["skipped"], line["loss"], line["multi_token_loss"], line["grad_norm"]) == (3, None, None, None)
    json.dumps(line, allow_nan=False)


def test_lines_after_the_resumed_step_and_torn_ones_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    lines.insert(2, json.dumps({"step": 2, "evaluation": {"loss": 2.0}}))
    path.write_text("\n".join(lines) + '\n{"step": 4, "lo')
    forget_after(path, 2)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in kept] == [1, 2, 2]
    forget_after(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def test_tensorboard_holds_the_same_figures_and_no_step_twice_after_a_resume(tmp_path):
    for first, last, loss in ((0, 5, 1.0), (3, 6, 2.0)):
        writer = MetricsWriter(tmp_path, first)
        for step in range(first + 1, last + 1):
            writer.training({"step": step, "loss": loss, "lr": 0.1, "mfu": None})
        writer.evaluation(last, EvaluationResult(1.0, 2.0, 10, 0.1), {"ul2": EvaluationResult(3.0, 4.0, 5, 0.1)}, {})
        writer.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()] == [1, 2, 3, 4, 5, 6, 6]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = [(event.step, event.value) for event in board.Scalars(TAGS["loss"])]
    assert scalars == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    assert board.Scalars("eval/perplexity")[-1].value == pytest.approx(2.718281828)
    assert TAGS["mfu"] not in board.Tags()["scalars"]


@pytest.mark.parametrize(
    ("logged", "step", "interval", "words"),
    [
        ([1, 2, 3, 4], 4, 1, ""),
        ([1, 2, 3], 4, 1, "it has no figures of step 4, which an earlier start trained"),
        ([1, 2], 4, 1, "it has no figures of steps 3 to 4,"),
        ([], 4, 1, "it has no figures of steps 1 to 4,"),
        ([10, 20], 25, 10, ""),
        ([10], 25, 10, "it has no figures of steps 11 to 20,"),
        ([1, 2, 3, 4, 5, 6], 4, 1, ""),
        ([], 0, 1, ""),
    ],
)
def test_steps_of_earlier_starts_that_have_no_figures_are_named(tmp_path, logged, step, interval, words):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": each, "loss": 1.0}) + "\n" for each in logged))
    gaps = forget_after(path, step, interval)
    assert len(gaps) == bool(words)
    assert all(words in gap for gap in gaps)


def test_lines_are_on_the_disk_once_they_are_flushed(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    writer = MetricsWriter(tmp_path, 0)
    writer.training({"step": 1, "loss": 1.0})
    monkeypatch.setattr(os, "fsync", note)
    writer.flush()
    writer.close()
    assert str(tmp_path / "metrics.jsonl") in synced


def test_a_full_disk_under_tensorboard_s_file_is_told_with_its_folder(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path, 0)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name, call in (("add_scalar", lambda: writer.training({"step": 1, "loss": 2.0})), ("flush", writer.flush)):
        with monkeypatch.context() as patched:
            patched.setattr(writer.board, name, full)
            with pytest.raises(OSError, match="No space left on device") as caught:
                call()
        assert sentence(caught.value) == f"{tmp_path / 'tensorboard'}: No space left on device"
    writer.close()
