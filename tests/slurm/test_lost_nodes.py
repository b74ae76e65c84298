"""Nodes that die under a run on a real Slurm: power, kernel, cable, daemon."""

import time

import pytest

from launcher import practice
from launcher.nodes import read_nodes
from launcher.profiles import LemonsConfig
from tests.slurm.losses import LOCAL_STEPS, WAYS
from training import fence


@pytest.fixture(scope="module")
def lost(losing, elastic):
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


def test_a_run_whose_node_stays_away_goes_on_with_fewer_and_grows_again(elastic, two_ranks_here):
    run = elastic.result()
    assert run.state(run.jobs[0]) == "COMPLETED", run.story()
    (fewer,) = run.events("fewer_nodes")
    assert (fewer["restart"], fewer["wanted"], fewer["have"], fewer["use"]) == (1, 4, 3, 2)
    assert [event["world_size"] for event in run.events("start")] == [4, 2, 4]
    assert [event["from"]["world_size"] for event in run.events("resharded")] == [4, 2]
    found = run.losses()
    assert found.keys() == two_ranks_here.keys()
    assert all(found[step] == pytest.approx(two_ranks_here[step], abs=1e-5) for step in found)
    log = (run.folder / "slurm" / f"train-{run.jobs[0]}.log").read_text()
    assert "3 nodes of 4: waiting up to 3 s for more" in log
    assert "goes on with 2 nodes; 4 are wanted, it has 3" in log


def test_lost_nodes_are_remembered_for_all_runs_of_the_cluster(lost):
    rule, file = LemonsConfig(), practice.folder() / "state" / "nodes.jsonl"
    remembered = {node.name: node for node in read_nodes(file, rule)[0]}
    for run, node, _ in lost.values():
        assert node in remembered, run.story()
        assert [failure.cause for failure in remembered[node].failures] == ["lost"]
    assert "node13" in remembered
