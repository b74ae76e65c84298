"""Where the time of a run went: kinds of time add up whatever happened to the run and to its diary."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.goodput import KINDS, MICRO, goodput, micro, spans_of, starts_of

EVENTS = (
    *("launch", "start", "ready", "first step", "save", "evaluate", "stop", "finish", "error", "job_start", "job_end"),
    *("lost work", "resume", "delete", "unhealthy"),
)
JOB = {"job": 7, "restart": 0}


def event(time, kind, attempt="a", **facts):
    return {"time": time, "event": kind, "attempt": attempt, **facts}


def start(at, attempt, step=0, **facts):
    """A start that takes 10 s to its ranks, 20 to be ready and 5 for its first step."""
    names = ((0, "launch", {}), (10, "start", {}), (30, "ready", {"step": step}), (35, "first step", {}))
    return [event(at + after, name, attempt, **more, **facts) for after, name, more in names]


def test_a_run_without_events_has_no_time():
    found = goodput([], [], {}, 100.0)
    assert found.wall == 0 and found.ratio == 0 and not found.interruptions


def test_an_undisturbed_run_is_steps_evaluations_and_the_time_they_waited_for_a_save():
    events = start(1000, "a")
    events += [event(1100, "save", step=10, seconds=30, stalled_seconds=2), event(1200, "save", step=20, seconds=8)]
    events += [event(1300, "evaluate", seconds=25), event(1350, "finish")]
    found = goodput(events, [], {}, 9999.0)
    seconds = {kind: length for kind, length in found.seconds.items() if length}
    assert seconds == {"starting": 35, "saving": 10, "evaluation": 25, "steps": 280}
    assert found.starting == {"ranks": 10, "preparing": 20, "first step": 5}
    assert found.wall == 350 and found.ratio == 0.8 and not found.interruptions


def test_a_killed_run_lost_what_came_after_the_checkpoint_that_it_goes_on_from():
    events = [*start(1000, "a"), event(1135, "save", step=10, seconds=1)]
    events += [event(2065, "lost work", "b", until=1200.0), *start(2035, "b", step=10), event(2170, "finish", "b")]
    found = goodput(events, [], {}, 9999.0)
    seconds = {kind: length for kind, length in found.seconds.items() if length}
    assert seconds == {"starting": 70, "steps": 99 + 100, "saving": 1, "lost": 65, "stopped": 835}
    (interruption,) = found.interruptions
    assert (interruption.time, interruption.cause) == (1200, "it left no word")
    assert (interruption.lost, interruption.seconds) == (65, 65 + 835 + 35)


@pytest.mark.parametrize("kind", ["save", "local save"])
def test_a_save_behind_the_steps_covers_what_came_before_it_was_due(kind):
    save = event(1140, kind, step=10, due=1100.0, seconds=38, stalled_seconds=2)
    events = [*start(1000, "a"), save, *start(2000, "b", step=10), event(2100, "finish", "b")]
    found = goodput([*events, event(2030, "lost work", "b", until=1150.0)], [], {}, 9999.0)
    seconds = {kind: length for kind, length in found.seconds.items() if length}
    assert seconds == {"starting": 70, "steps": 65 + 65, "saving": 2, "lost": 48, "stopped": 850}


def test_the_way_of_a_job_through_queues_and_a_broken_node():
    events = [event(150, "job_start", **JOB), event(160, "unhealthy", node="n", **JOB)]
    events.append(event(170, "job_end", reason="unhealthy", message="n is broken", **JOB))
    again = {"job": 7, "restart": 1}
    events += [event(400, "job_start", "7.1", **again), *start(410, "7.1", **again), event(500, "finish", "7.1")]
    found = goodput([e | {"attempt": "7.0"} if e["attempt"] == "a" else e for e in events], [{"time": 100.0}], {}, 9e3)
    seconds = {kind: length for kind, length in found.seconds.items() if length}
    assert seconds == {"queue": 50 + 230, "starting": 20 + 45, "steps": 55}
    assert found.wall == 400
    assert [(each.cause, each.seconds) for each in found.interruptions] == [("n is broken", 230 + 45)]


def test_a_run_goes_on_until_it_is_silent_and_one_that_broke_lost_its_last_steps():
    events = [*start(1000, "a"), event(1100, "save", step=10, seconds=0)]
    assert goodput(events, [], {"time": 1150.0}, 1200.0).seconds["steps"] == 165
    assert goodput(events, [], {"time": 1150.0}, 5000.0).seconds["stopped"] == 3850
    broken = goodput([*events, event(1160, "error", message="no")], [], {"time": 1150.0}, 1200.0)
    assert broken.seconds["lost"] == 60 and broken.seconds["stopped"] == 40
    assert [(each.cause, each.lost) for each in broken.interruptions] == [("no", 60)]


def test_a_run_that_went_back_to_an_older_checkpoint_lost_steps_of_several_starts():
    events = [
        *start(0, "a"),
        event(100, "save", step=10),
        event(200, "save", step=20),
        event(210, "error", message="x"),
    ]
    events += [*start(300, "b", step=20), event(400, "error", "b", message="y")]
    events += [*start(500, "c", step=10), event(600, "finish", "c")]
    found = goodput(events, [], {}, 1e4)
    assert found.seconds["lost"] == 110 + 65 and found.seconds["steps"] == 65 + 65
    assert [each.lost for each in found.interruptions] == [110, 65]


times = st.floats(0, 1e6, allow_nan=False)
records = st.builds(
    lambda time, kind, attempt, step, seconds, facts: event(time, kind, attempt, step=step, seconds=seconds, **facts),
    times,
    st.sampled_from(EVENTS),
    st.sampled_from(["a", "b", "c", "7.0", ""]),
    st.integers(0, 5),
    st.floats(0, 1e5),
    st.sampled_from(
        [
            {},
            JOB,
            {"until": 5e5},
            {"stalled_seconds": 3.0},
            {"stalled_seconds": 3.0, "due": 1e5},
            {"stage": "data"},
            {"message": "why"},
        ]
    ),
)


@given(st.lists(records, max_size=40), st.lists(st.builds(lambda time: {"time": time}, times)), times, times)
def test_kinds_add_up_to_the_wall_time_whatever_was_torn_overlaps_or_is_out_of_order(events, jobs, last, now):
    starts = starts_of(events, {"time": last}, now)
    spans = spans_of(starts, jobs, micro(now))
    found = goodput(events, jobs, {"time": last}, now)
    assert all(one.end == other.begin for one, other in itertools.pairwise(spans))
    length = spans[-1].end - spans[0].begin if spans else 0
    assert micro(found.wall) == length == sum(micro(seconds) for seconds in found.seconds.values())
    assert set(found.seconds) == set(KINDS) and all(seconds >= 0 for seconds in found.seconds.values())
    assert micro(found.seconds["starting"]) == sum(map(micro, found.starting.values()))
    if spans and not (starts and starts[-1].finished):
        assert abs(spans[-1].end - now * MICRO) <= 1
    assert all(each.seconds >= each.lost >= 0 for each in found.interruptions)


@given(st.lists(st.tuples(st.floats(40, 1e4), st.floats(0, 1e4), st.integers(0, 3)), min_size=1, max_size=6))
def test_kills_at_any_moment_leave_steps_that_count_and_lost_ones_with_what_a_simulation_says(lives):
    now, saved, kept, lost, events = 1000.0, 0, 0.0, 0.0, []
    for number, (life, pause, saves) in enumerate(lives):
        events += start(now, str(number), step=saved)
        last = now + 35
        for index in range(saves):
            last, saved = now + 35 + (life - 35) * (index + 1) / (saves + 1), saved + 1
            events.append(event(last, "save", str(number), step=saved))
        kept += last - now - 35
        end = now + life
        if number < len(lives) - 1:
            lost += end - last
            events.append(event(end + pause + 20, "lost work", str(number + 1), until=end))
            now = end + pause
        else:
            kept += end - last
            events.append(event(end, "finish", str(number)))
    found = goodput(events, [], {}, 1e9)
    assert found.seconds["steps"] == pytest.approx(kept, abs=1e-3)
    assert found.seconds["lost"] == pytest.approx(lost, abs=1e-3)
    assert found.wall == pytest.approx(end - 1000, abs=1e-3)
    assert len(found.interruptions) == len(lives) - 1
