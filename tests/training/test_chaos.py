"""A run that is killed again and again ends as the one that is left alone; more of it is in `benchmarks.chaos`."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import chaos
from benchmarks.chaos_plan import DAMAGES, DELAYS, INTERVAL, STEPS, Strike, Trial, Way, config_of, trial
from benchmarks.chaos_strikes import damage
from common.json_lines import append_line
from launcher.config import check_config

KILLS = (
    Strike("SIGKILL", "rank 1", "steps", 3, 0.0, None),
    Strike("SIGKILL", "launcher", "start", 1, 0.2, None),
)


def test_killed_between_steps_and_in_a_start_a_run_ends_as_the_one_that_was_left_alone(tmp_path):
    plan = Trial(0, Way("causal", 2, "fp32", 1), KILLS)
    outcome = chaos.attempt(plan, chaos.Ground(tmp_path))
    assert outcome.verdict == "identical"
    assert outcome.starts == 3 and list(KILLS) == outcome.struck
    assert outcome.lost <= INTERVAL


def test_a_plan_depends_on_its_numbers_alone_and_takes_everything_in():
    plans = [trial(5, number) for number in range(200)]
    assert plans == [trial(5, number) for number in range(200)] != [trial(6, number) for number in range(200)]
    assert len({plan.way for plan in plans}) > 40
    strikes = [strike for plan in plans for strike in plan.strikes]
    assert {strike.moment for strike in strikes} == DELAYS.keys()
    assert {strike.damage[0] for strike in strikes if strike.damage} == set(DAMAGES)
    assert {strike.deed for strike in strikes} == {"SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP", "disk full"}
    assert all(0 <= strike.delay <= DELAYS[strike.moment] for strike in strikes)


def test_every_way_is_a_config_that_can_be_trained():
    for way in {trial(5, number).way for number in range(200)}:
        assert check_config(config_of(way, "data", "runs", "run"), "plan").training.steps == STEPS


def test_steps_that_are_trained_again_are_counted_and_more_than_an_interval_is_a_fault(tmp_path):
    outcome = chaos.Outcome(0, "way")
    ground = SimpleNamespace(config=lambda way, runs, name: runs / f"{name}.yaml")
    course = chaos.Course(trial(1, 0), ground, tmp_path, outcome)
    course.run.mkdir(parents=True)

    def start(number, resumed, last) -> None:
        append_line(course.run / "events.jsonl", {"event": "ready", "time": float(number), "step": resumed})
        for step in range(resumed + 1, last + 1):
            append_line(course.run / "metrics.jsonl", {"step": step, "loss": 1.0})
        course._count(SimpleNamespace(began=float(number)))

    start(1, 0, 9)
    start(2, 6, 12)
    assert (outcome.lost, outcome.faults) == (3, [])
    course.extra = 6  # the newest checkpoint was damaged
    start(3, 0, 20)
    assert (outcome.lost, outcome.lost_to_damage, outcome.faults) == (3, 12, [])
    (course.run / "checkpoints" / ".tmp-x-step-00000024-y").mkdir(parents=True)
    start(4, 18, 28)
    start(5, 18, 28)
    assert (outcome.lost, outcome.behind, outcome.faults) == (10, 4, [])
    (course.run / "checkpoints" / ".tmp-x-step-00000024-y").rmdir()
    start(6, 18, 29)
    start(7, 18, 29)
    assert outcome.faults == [f"11 steps were lost, where {INTERVAL} may be"]


@pytest.fixture
def pair(tmp_path):
    """Two folders with the same metrics, of a step and an evaluation."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        append_line(tmp_path / name / "metrics.jsonl", {"step": 1, "loss": 0.1, "step_seconds": len(name)})
        append_line(tmp_path / name / "metrics.jsonl", {"step": 1, "evaluation": {"loss": 0.2, "seconds": len(name)}})
    return tmp_path / "one", tmp_path / "other"


def test_histories_are_compared_to_the_last_bit_and_without_what_a_clock_says(pair):
    one, other = map(chaos.history, pair)
    assert one == other
    text = (pair[0] / "metrics.jsonl").read_text()
    for changed in (text.replace("0.1", repr(0.1 + 2**-56)), text.replace("0.2", repr(0.2 + 2**-55)), text + text):
        assert changed != text
        (pair[0] / "metrics.jsonl").write_text(changed)
        assert chaos.history(pair[0]) != other


def test_only_a_checkpoint_that_has_another_before_it_is_damaged(tmp_path):
    for step in (6, 12):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        assert not damage(tmp_path, "truncated", "state.json", 0.5)
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": step}))
    whole = (folder / "state.json").read_bytes()
    assert damage(tmp_path, "bit flipped", "state.json", 0.5)
    assert len((folder / "state.json").read_bytes()) == len(whole) and (folder / "state.json").read_bytes() != whole
    assert damage(tmp_path, "truncated", "state.json", 0.5)
    assert len((folder / "state.json").read_bytes()) < len(whole)
    assert damage(tmp_path, "missing", "state.json", 0.5)
    assert not (folder / "state.json").exists()
