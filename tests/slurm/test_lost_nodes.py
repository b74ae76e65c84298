"""Nodes that die under a run on a real Slurm: power, kernel, cable, daemon."""

import time

import pytest

from tests.slurm.losses import LOCAL_STEPS, WAYS
from training import fence


@pytest.fixture(scope="module")
def lost(losing):
    """Four runs, each with the node it lost and what was left on it, once they are over."""
    return {way: (run, *future.result()) for way, (run, future) in losing.items()}


@pytest.mark.parametrize("way", WAYS)
def test_a_lost_node_costs_at_most_what_was_not_saved(lost, two_ranks_here, way):
    run, node, _ = lost[way]
    assert run.state(run.jobs[0]) == "COMPLETED", run.story()
    assert run.losses() == two_ranks_here
    assert [event["restart"] for event in run.events("start")] == [0, 1]
    assert run.events("resume")[0]["step"] >= 30
    again = run.events("job_start")[1]
    assert again["time"] - run.lost_at < 120, "Slurm takes 8 s here to see it, and up to 50 s to clear the other nodes"
    assert node not in run.cluster.call("scontrol", "show", "hostnames", again["nodes"]).split()


def test_a_node_that_goes_with_its_disk_costs_no_more_than_what_the_nodes_had_not_saved_between_them(lost):
    run, _, _ = lost["off"]
    (promoted,), (resumed, *_) = run.events("promoted"), run.events("resume")
    # one save may have been under way, and a second is never begun before it is complete
    assert promoted["step"] == resumed["step"] >= run.reached - 2 * LOCAL_STEPS
    assert run.reached >= 35 and not [event for event in run.events("save") if event["step"] < promoted["step"]]


def test_a_rank_that_wakes_up_after_its_run_went_on_elsewhere_leaves_it_alone(lost):
    run, _, frozen = lost["stop-slurmd"]
    assert frozen
    run.until(lambda: not any(process.is_running() for process in frozen))
    assert {event["restart"] for event in run.events("error") + run.events("stop")} <= {1}
    assert "has taken this run over" in (run.folder / "logs" / "rank-0.log").read_text()
    assert fence.read(run.folder) == f"{run.jobs[0]}.1"
    log = run.folder / "slurm" / f"train-{run.jobs[0]}.log"
    last_words = ("this start is over", "this one says no more")  # of the job's own script on that node
    deadline = time.monotonic() + 60
    while not any(words in log.read_text() for words in last_words):
        assert time.monotonic() < deadline, run.story()
        time.sleep(0.2)
    assert run.ends() == ["finished"]
