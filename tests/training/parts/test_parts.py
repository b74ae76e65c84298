"""Each part of the trainer by itself."""

import dataclasses
import gc
import json

import pytest
import torch

from tests.training.runs import steps_of, tiny_config
from tests.training.stand_ins import moment_of, result_of, run_in
from training.distributed import World
from training.evaluation import Evaluators
from training.parts.collecting import Collecting
from training.parts.evaluating import Evaluating
from training.parts.metrics import Metrics
from training.parts.profiling import Profiling
from training.parts.saving import Saving
from training.parts.watching import Watching
from training.watch import Watch


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


def test_what_a_part_is_about_to_use_it_says_beforehand(tmp_path):
    parts = [Saving(run_in(tmp_path), None, []), Evaluating(run_in(tmp_path), None, Evaluators({"own": None}), None)]  # type: ignore
    for part in parts:
        assert [step for step in range(1, 21) if part.reads(moment_of(step))] == [10, 20]
        assert part.reads(moment_of(3, done=True))
    assert not Evaluating(run_in(tmp_path), None, Evaluators(), None).reads(moment_of(10, done=True))  # type: ignore
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
    run = watched_run(tmp_path, config)
    part, watch = Watching(run), run.world.watch
    part.begin()
    assert (watch.place.phase, watch.place.minutes) == ("first step", 40) and not given
    for step in (7, 8):
        part.before_step(step)
        part.after_step(moment_of(step))
    assert (watch.place.phase, watch.place.minutes) == ("step", 3)
    assert [timeout.total_seconds() for timeout in given] == [180]
    part.before_save()
    assert watch.place.phase == "save"
    part.finish()
    assert watch.place.phase == "leaving"
    watch.stop()


def watched_run(folder, config):
    """A run whose watch knows its deadlines."""
    world = dataclasses.replace(World.alone(), watch=Watch(0, config.phase_minutes))
    return run_in(folder, config, world)


@pytest.mark.parametrize(
    ("deadlines", "minutes"),
    [
        ({"slow_step_floor_minutes": 0.01}, 0.5),
        ({"slow_step_floor_minutes": 0.01, "slow_step_factor": 2}, 0.05),
        ({"slow_step_floor_minutes": 2, "slow_step_factor": 2}, 2),
        ({"slow_step_factor": None}, 3),
        ({"step_minutes": 0.4}, 0.4),
    ],
)
def test_a_step_many_times_its_usual_length_is_one_that_gets_nowhere(tmp_path, monkeypatch, deadlines, minutes):
    now = [0.0]
    monkeypatch.setattr("training.parts.watching.time.monotonic", lambda: now[0])
    config = tiny_config("none", training={"hang_minutes": 3.0}, deadlines={"slow_step_floor_minutes": 1} | deadlines)
    run = watched_run(tmp_path, config)
    part = Watching(run)
    for step in range(1, 12):
        part.before_step(step)
        now[0] += 100.0 if step == 1 else 1.5
        part.after_step(moment_of(step))
    part.before_step(12)
    assert run.world.watch.place.minutes == pytest.approx(minutes)
    run.world.watch.stop()
