"""Each part of the trainer by itself."""

import gc
import json
import time

import pytest
import torch

from tests.training.runs import steps_of, tiny_config
from tests.training.stand_ins import moment_of, result_of, run_in
from training.parts import saving
from training.parts.collecting import Collecting
from training.parts.evaluating import Evaluating
from training.parts.metrics import Metrics
from training.parts.part import Part
from training.parts.profiling import Profiling
from training.parts.saving import Saving
from training.parts.watching import Watching


@pytest.fixture
def collections(monkeypatch):
    """Moments at which the collector was told to run; it is left as it was."""
    calls = []
    monkeypatch.setattr(gc, "collect", lambda: calls.append(len(calls)))
    yield calls
    gc.unfreeze()
    gc.enable()


def test_garbage_is_collected_after_the_first_step_and_then_at_the_interval_only(collections):
    part = Collecting(5)
    part.begin()
    assert not gc.isenabled()
    at = []
    for step in range(8, 22):
        before = len(collections)
        part.after_step(moment_of(step))
        at += [step] * (len(collections) - before)
    part.close()
    assert at == [8, 10, 15, 20]
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_without_an_interval_python_collects_when_it_likes(collections):
    part = Collecting(None)
    part.begin()
    part.after_step(moment_of(1))
    assert gc.isenabled() and not collections


def test_metrics_are_due_at_their_interval_and_wherever_the_run_ends(tmp_path):
    part = Metrics(run_in(tmp_path, tiny_config("none", training={"log_interval": 5})), 0, None)
    due = [step for step in range(1, 11) if part.reads(moment_of(step))]
    assert due == [5, 10]
    assert part.reads(moment_of(3, done=True)) and part.reads(moment_of(3, stopping=True))
    part.close()


def test_a_line_of_metrics_is_of_all_steps_since_the_last_one(tmp_path):
    part = Metrics(run_in(tmp_path, tiny_config("none", training={"log_interval": 2})), 0, None)
    for step in range(1, 6):
        part.after_step(moment_of(step, result=result_of(loss=10 - step), done=step == 5))
    part.finish()
    lines = steps_of(tmp_path)
    assert [(line["step"], line["loss"], line["documents_cut"]) for line in lines] == [(2, 8, 6), (4, 6, 6), (5, 5, 3)]
    assert lines[-1]["samples_consumed"] == 80 and lines[-1]["tokens_consumed"] == 4500


def test_nothing_is_asked_of_the_device_between_lines(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("memory was asked for")

    part = Metrics(run_in(tmp_path, tiny_config("none", training={"log_interval": 2})), 0, None)
    monkeypatch.setattr("training.parts.metrics.memory_gb", never)
    part.after_step(moment_of(1))
    with pytest.raises(AssertionError):
        part.after_step(moment_of(2))


class Lasting(Part):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def before_save(self) -> None:
        self.told.append("before")

    def after_save(self, folder) -> None:
        self.told.append(folder.name)


@pytest.fixture
def saved(monkeypatch):
    """Steps of checkpoints that would have been written."""
    steps = []

    def save(engine, folder, state, identity, world, writers):
        steps.append(state.step)
        return folder / "checkpoints" / f"step-{state.step:08d}"

    monkeypatch.setattr(saving, "save", save)
    monkeypatch.setattr(saving, "delete_superseded", lambda folder, keep, every: [])
    return steps


def test_checkpoints_are_saved_at_their_interval_and_wherever_the_run_ends(tmp_path, saved):
    other = Lasting()
    part = Saving(run_in(tmp_path), None, [other])  # type: ignore
    for step in range(1, 12):
        part.after_step(moment_of(step))
    part.after_step(moment_of(13, stopping=True))
    part.after_step(moment_of(14, done=True))
    assert saved == [10, 13, 14]
    assert other.told == ["before", "step-00000010", "before", "step-00000013", "before", "step-00000014"]


def test_what_a_part_is_about_to_use_it_says_beforehand(tmp_path, saved):
    parts = [Saving(run_in(tmp_path), None, []), Evaluating(run_in(tmp_path), None, {"own": None}, None)]  # type: ignore
    for part in parts:
        assert [step for step in range(1, 21) if part.reads(moment_of(step))] == [10, 20]
        assert part.reads(moment_of(3, done=True))
    assert not Evaluating(run_in(tmp_path), None, {}, None).reads(moment_of(10, done=True))  # type: ignore
    assert not parts[1].reads(moment_of(3, stopping=True)), "a run that is stopped has no time for that"


def test_a_profile_holds_the_steps_that_were_asked_for(tmp_path):
    config = tiny_config("none", training={"profile": {"start": 2, "steps": 2}})
    part = Profiling(run_in(tmp_path, config))
    for step in range(1, 6):
        part.before_step(step)
        torch.full((3, 3), float(step)).mm(torch.eye(3))
        part.after_step(moment_of(step))
    part.close()
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == "rank-0-steps-2-3.json"
    products = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("name") == "aten::mm"]
    assert len(products) == 2


def test_a_profile_of_a_rank_that_is_not_there_is_refused(tmp_path):
    config = tiny_config("none", training={"profile": {"start": 2, "ranks": [0, 3]}})
    with pytest.raises(ValueError, match=r"training.profile.ranks: 3 is not a rank of 1, counted from 0"):
        Profiling(run_in(tmp_path, config))


def test_a_profile_of_steps_beyond_the_last_is_refused():
    with pytest.raises(ValueError, match="profile: steps 19 to 21 are not all among the 20 of the run"):
        tiny_config("none", training={"profile": {"start": 19}})


def test_ranks_wait_long_for_the_first_step_and_short_for_others(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("training.parts.watching.set_timeout", lambda world, timeout: given.append(timeout))
    config = tiny_config("none", training={"start_minutes": 40.0, "hang_minutes": 3.0})
    part = Watching(run_in(tmp_path, config))
    part.begin()
    assert part.watch.minutes == 40 and not given
    for step in (7, 8):
        part.before_step(step)
        part.after_step(moment_of(step))
    assert part.watch.minutes == 3
    assert [timeout.total_seconds() for timeout in given] == [180]
    part.close()


def test_a_watch_that_was_stopped_ends_nothing(tmp_path):
    part = Watching(run_in(tmp_path))
    part.watch.minutes = 0.001
    part.begin()
    part.close()
    time.sleep(0.2)
