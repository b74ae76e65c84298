"""A controller that is away while its jobs go on, and options that a caller's environment holds."""

import signal
import time

import pytest


def test_a_job_that_is_warned_while_the_controller_is_away_saves_and_goes_on_when_it_is_back(cluster, two_ranks_here):
    run = cluster.submit("away", cluster.profile(ranks_per_node=1))
    run.until_step(20)
    script = run.script(run.jobs[0])
    cluster.controller("stop")
    try:
        script.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 120
        while not run.events("stop"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(5)  # the script asks for the controller by now
        assert script.is_running()
    finally:
        cluster.controller("start")
    time.sleep(5)
    assert run.wait() == "COMPLETED", run.story()
    assert run.ends() == ["time", "finished"]
    assert run.losses() == two_ranks_here


@pytest.fixture
def options(monkeypatch):
    """What login files of some clusters set."""
    found = {"SLURM_MEM_PER_CPU": "500", "SBATCH_TIMELIMIT": "0:02:00", "SBATCH_JOB_NAME": "x", "SBATCH_EXPORT": "NONE"}
    for name, value in found.items():
        monkeypatch.setenv(name, value)


def test_options_in_the_environment_of_who_submits_do_not_reach_the_job(cluster, options):
    profile = cluster.profile(ranks_per_node=1, python="/bin/true", memory="400M", health={"level": "off"})
    run = cluster.submit("plain-options", profile, time="20m")
    (job,) = run.jobs
    log = run.folder / "slurm" / f"train-{job}.log"
    assert cluster.call("squeue", "--noheader", f"--jobs={job}", "--format=%j %l").split() == ["plain-options", "20:00"]
    run.until(lambda: log.exists() and "ranks ended with status" in log.read_text())
    cluster.call("scancel", str(job))
    assert "ranks ended with status 0" in log.read_text()
    assert "srun: " not in log.read_text()
