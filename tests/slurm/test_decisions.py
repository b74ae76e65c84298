"""Whole job scripts, with Slurm's commands as small scripts: what comes of how the ranks ended, and of staging in."""

import subprocess
import sys
import tarfile

import pytest

from launcher.job_script import Job, render
from launcher.profiles import ClusterProfile
from launcher.run_folder import diary
from slurm import rank
from tests.slurm.commands import Commands

SCONTROL = """case "$*" in
ping) echo "Slurmctld(primary) at ctl is UP" ;;
"show hostnames"*) printf "node%d\\n" 0 1 ;;
*"show job"*) echo "JobId=7 Restarts=0 ExcNodeList=(null) " ;;
"show config") echo "SlurmdTimeout = 1 sec" ;;
requeue*) kill -TERM "$JOB_SHELL" ;;
esac"""
SQUEUE = 'case "$*" in *PENDING*) echo 8 ;; *--jobs*) echo RUNNING ;; esac'
SRUN = """while [[ $1 == --* ]]; do shift; done
[ "$1" != printenv ] || { printf "node%d\\n" 0 1; exit 0; }
"""


@pytest.fixture
def slurm(tmp_path):
    commands = Commands(tmp_path)
    commands.answer("scontrol", SCONTROL)
    commands.answer("squeue", SQUEUE)
    commands.answer("sinfo", 'printf "node%d\\n" 0 1 2 3')
    return commands


@pytest.fixture
def job(slurm, tmp_path):
    """Runs the job file of a profile, on two nodes."""
    run = tmp_path / "run"
    (run / "slurm").mkdir(parents=True)
    (run / "slurm" / "chain").write_text("7\n8\n")

    def start(verify: bool = False, **profile) -> subprocess.CompletedProcess[str]:
        job = Job(str(run), str(tmp_path), sys.executable, 2, "10:00", steps=5, verify=verify)
        text = render(job, ClusterProfile.model_validate({"health": {"level": "off"}, **profile}))
        command = ["bash", "-c", 'export JOB_SHELL=$$; exec bash -c "$0"', text]
        environment = slurm.environment(HOME=str(tmp_path))
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    start.run = run
    return start


def last_word(job) -> str:
    return diary(job.run).records[-1]["reason"]


def test_a_mistake_of_any_rank_ends_the_job_and_its_chain_even_after_the_ranks_were_ready(slurm, job):
    slurm.answer("srun", f"{SRUN}touch {job.run}/slurm/marks-7.0/mistake; exit 1")
    assert job().returncode == 2
    assert last_word(job) == "mistake"
    assert slurm.calls("scancel") == ["--quiet 8"]
    assert not [call for call in slurm.calls("scontrol") if call.startswith("requeue")]


def test_ranks_that_broke_without_a_word_are_started_again(slurm, job):
    slurm.answer("srun", f"{SRUN}exit 1")
    job()
    assert last_word(job) == "broken"
    assert "requeue 7" in slurm.calls("scontrol")
    assert slurm.calls("scancel") == []


def test_a_mark_of_an_earlier_start_says_nothing_of_this_one(slurm, job):
    (job.run / "slurm" / "marks-6.0").mkdir()
    (job.run / "slurm" / "marks-6.0" / "mistake").touch()
    slurm.answer("srun", f"{SRUN}exit 1")
    job()
    assert last_word(job) == "broken"
    assert not (job.run / "slurm" / "marks-6.0").exists()


def test_what_a_job_runs_gets_the_whole_environment_of_its_script(slurm, job):
    slurm.answer("srun", f"{SRUN}exit 1")
    job(health={"level": "basic"})
    assert all("--export=ALL" in call.split() for call in slurm.calls("srun"))


def test_an_srun_that_refuses_the_health_check_is_told_and_no_node_is_blamed(slurm, job):
    slurm.answer("srun", 'echo "srun: error: Unable to create step for job 7: Memory required by task" >&2; exit 1')
    job(health={"level": "basic"})
    end = diary(job.run).records[-1]
    assert end["reason"] == "broken"
    assert "nothing starts on the nodes: srun: error: Unable to create step" in end["message"]
    assert not [event for event in diary(job.run).records if event["event"] == "unhealthy"]


PROOF = 'echo "loss  DIFFERS" >{run}/slurm/verify-7.0.txt; echo "verify: {words}" >>{run}/slurm/verify-7.0.txt'


def test_ranks_that_train_otherwise_than_a_plain_loop_end_the_job_and_its_chain_with_a_sentence(slurm, job):
    proof = PROOF.format(run=job.run, words="the loss differs by 0.1")
    slurm.answer("srun", f"{SRUN}{proof}; touch {job.run}/slurm/marks-7.0/differs")
    done = job(verify=True)
    assert done.returncode == 2
    assert "loss  DIFFERS" in done.stderr, "the table stands in the job's log"
    end = diary(job.run).records[-1]
    assert (end["reason"], end["message"]) == ("unverified", "verify: the loss differs by 0.1")
    assert slurm.calls("scancel") == ["--quiet 8"]
    assert not [call for call in slurm.calls("scontrol") if call.startswith("requeue")]
    assert [call.split()[-1] for call in slurm.calls("srun")] == ["--verify"], "nothing was trained"


def test_ranks_that_hold_train_after_that_and_a_proof_that_broke_is_begun_again(slurm, job):
    holds = f"{PROOF.format(run=job.run, words='it holds')}; touch {job.run}/slurm/marks-7.0/verified"
    trains = f"mkdir -p {job.run}/checkpoints; echo step-00000005 >{job.run}/checkpoints/latest"
    slurm.answer("srun", f'{SRUN}case "$*" in *--verify) {holds} ;; *slurm.rank*) {trains} ;; esac')
    done = job(verify=True)
    assert done.returncode == 0 and "verify: it holds" in done.stderr
    assert last_word(job) == "finished"
    (job.run / "checkpoints" / "latest").unlink()
    slurm.answer("srun", f"{SRUN}exit 1")
    job(verify=True)
    assert last_word(job) == "broken" and "requeue 7" in slurm.calls("scontrol")


@pytest.mark.parametrize(
    ("code", "number", "verifies", "mark"),
    [
        (2, "3", False, "mistake"),
        (75, "0", False, "stopped"),
        (75, "3", False, None),
        (1, "0", False, None),
        (0, "0", False, None),
        (0, "0", True, "verified"),
        (0, "1", True, None),
        (78, "0", True, "differs"),
        (78, "1", True, None),
        (2, "1", True, "mistake"),
        (1, "0", True, None),
    ],
)
def test_a_rank_leaves_a_mark_of_what_the_script_is_to_act_on(tmp_path, monkeypatch, code, number, verifies, mark):
    monkeypatch.setenv("SHARDLINE_ATTEMPT", "7.0")
    monkeypatch.setenv("RANK", number)
    marks = tmp_path / "slurm" / "marks-7.0"
    rank.mark(tmp_path, code, verifies)  # a later start has taken the folder away
    marks.mkdir(parents=True)
    rank.mark(tmp_path, code, verifies)
    assert [path.name for path in marks.iterdir()] == ([mark] if mark else [])


# ---- staging in

EACH_NODE = SRUN + 'for node in node0 node1; do SLURMD_NODENAME=$node "$@" || failed=1; done; exit ${failed-0}'


@pytest.fixture
def environment(tmp_path):
    """An archive whose Python leaves a file where it is run."""
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\necho "$0" "$@" >>"$HOME/ran"\n')
    python.chmod(0o755)
    with tarfile.open(tmp_path / "env.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "env", ".")
    return {"archive": str(tmp_path / "env.tar.gz"), "to": "${HOME}/local disk"}


def test_ranks_use_the_python_that_each_node_has_unpacked_once(slurm, job, environment, tmp_path):
    slurm.answer("srun", EACH_NODE)
    job(stage_in=environment)
    (place,) = (tmp_path / "local disk").iterdir()
    words = f"{place}/bin/python -P -m slurm.rank {job.run}"
    assert (tmp_path / "ran").read_text().splitlines() == [words, words]
    before = (place / "bin" / "python").stat()
    job(stage_in=environment)
    assert (place / "bin" / "python").stat() == before
    assert [path.name for path in (tmp_path / "local disk").iterdir()] == [place.name]


def test_another_archive_gets_a_folder_of_its_own(slurm, job, environment, tmp_path):
    slurm.answer("srun", EACH_NODE)
    job(stage_in=environment)
    with tarfile.open(environment["archive"], "w:gz") as archive:
        archive.add(tmp_path / "env" / "bin", "bin")
        archive.add(tmp_path / "env" / "bin" / "python", "more")
    job(stage_in=environment)
    assert len(list((tmp_path / "local disk").iterdir())) == 2


def test_an_archive_that_no_node_can_unpack_is_a_mistake_and_leaves_nothing(slurm, job, environment, tmp_path):
    (tmp_path / "env.tar.gz").write_bytes((tmp_path / "env.tar.gz").read_bytes()[:100])
    slurm.answer("srun", EACH_NODE)
    done = job(stage_in=environment)
    assert (done.returncode, last_word(job)) == (2, "mistake")
    assert list((tmp_path / "local disk").iterdir()) == []


def test_a_node_that_cannot_unpack_is_left_out(slurm, job, environment, tmp_path):
    slurm.answer("srun", SRUN + 'SLURMD_NODENAME=node0 "$@"')
    job(stage_in=environment)
    assert [event["node"] for event in diary(job.run).records if event["event"] == "unhealthy"] == ["node1"]
    assert [call for call in slurm.calls("scontrol") if "ExcNodeList=node1" in call]
