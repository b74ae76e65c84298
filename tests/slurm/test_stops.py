"""Runs on a real Slurm that are stopped in every way Slurm knows, and go on as if nothing had been."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.slurm_start import PHASES, moments
from common.json_lines import read_lines

LONG = 5000
"""Steps of a run that is still going on when a command comes, however busy the machine."""


def disturb(run):
    """Signals the run, requeues it, lets it run out of time."""
    (job,) = run.jobs
    run.until_step(20)
    run.cluster.call("scancel", "--signal=USR1", str(job))
    run.until_step(50, restart=1)
    run.cluster.call("scontrol", "requeue", str(job))
    run.until_step(80, restart=2)
    run.run_out_of_time(job)
    run.until(lambda: len(run.ends()) == 3)
    run.cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    run.wait()


def exhaust(run):
    """Lets the first two jobs of a chain run out of time."""
    for number, job in enumerate(run.jobs[:2]):
        run.until_step(40 * (number + 1), job=job)
        run.run_out_of_time(job)
    run.wait()


def cancel(run):
    """Asks `status` how it is, and has it saved and ended."""
    run.until_step(20)
    facts = json.loads(shardline("status", run.folder, "--json"))
    assert (facts["state"], facts["job"], facts["steps"]) == ("running", run.jobs[0], LONG)
    assert facts["step"] >= 20
    assert facts["waiting"] == run.jobs[1:]
    assert "saves and ends" in shardline("cancel", run.folder, "--save")
    run.wait()


def shardline(*words) -> str:
    command = [sys.executable, "-m", "launcher.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(cluster, two_ranks_here):
    """The runs of this file by name, all at once and each with what happens to it, once they are over."""
    profile = cluster.profile(ranks_per_node=1, warning_seconds=55)
    hopeless = cluster.profile(ranks_per_node=1, python="/bin/false", health={"level": "off"})
    long = cluster.config("cancelled", training={"steps": LONG})
    runs = {
        "disturbed": (cluster.submit("disturbed", profile), disturb),
        "chain": (cluster.submit("chain", profile, chain=3), exhaust),
        "hopeless": (cluster.submit("hopeless", hopeless), lambda run: run.wait()),
        "cancelled": (cluster.submit("cancelled", profile, long, chain=2), cancel),
    }
    with ThreadPoolExecutor() as threads:
        for future in [threads.submit(happens, run) for run, happens in runs.values()]:
            future.result()
    return {name: run for name, (run, _) in runs.items()}


def test_a_run_that_is_signalled_requeued_and_out_of_time_ends_as_if_undisturbed(runs, two_ranks_here):
    run = runs["disturbed"]
    assert run.state(run.jobs[0]) == "COMPLETED", run.story()
    assert run.losses() == two_ranks_here
    assert [event["restart"] for event in run.events("start")] == [0, 1, 2, 3]
    assert [event["restart"] for event in run.events("stop")] == [0, 1, 2]
    assert run.ends() == ["stopped", "terminated", "time", "finished"]


def test_a_chain_of_three_jobs_goes_on_where_the_last_one_stopped(runs, two_ranks_here):
    run = runs["chain"]
    assert run.state(run.jobs[-1]) == "COMPLETED", run.story()
    assert run.losses() == two_ranks_here
    assert [event["job"] for event in run.events("start")] == run.jobs
    assert run.ends() == ["time", "time", "finished"]


def test_the_way_from_submission_to_the_first_step_is_split_by_phase(runs):
    folder = runs["chain"].folder
    found = {"submitted": read_lines(folder / "slurm" / "jobs.jsonl")[0]["time"], **moments(folder)}
    order = [found[end] for _, _, end in PHASES]
    assert order == sorted(order)
    assert order[0] < order[-1]


def test_two_restarts_without_progress_end_a_job_with_a_sentence(runs):
    run = runs["hopeless"]
    assert run.state(run.jobs[0]) == "FAILED", run.story()
    assert run.ends() == ["start", "start", "crash_loop"]
    assert "2 restarts after that brought no newer checkpoint" in run.events("job_end")[-1]["message"]


def test_a_run_that_is_cancelled_with_save_has_saved_and_stays_ended(runs):
    run = runs["cancelled"]
    assert [run.state(job) for job in run.jobs] == ["COMPLETED", "CANCELLED"], run.story()
    assert run.ends() == ["cancelled"]
    (stop,) = run.events("stop")
    assert run.last_step() == stop["step"]
    facts = json.loads(shardline("status", run.folder, "--json"))
    assert (facts["state"], facts["checkpoint"]) == ("stopped", f"step-{stop['step']:08d}")
    assert "submit again" in shardline("logs", run.folder)
    assert "device cpu" in shardline("logs", run.folder, "--rank", 0, "--lines", 1000)
