"""Whole job scripts, with Slurm's commands as small scripts: what comes of how the ranks ended, and of staging in."""

import subprocess
import sys
import tarfile

import pytest

from common.json_lines import read_lines
from launcher.job_script import Job, render
from launcher.profiles import ClusterProfile
from launcher.run_folder import diary
from slurm import rank
from tests.slurm.commands import Commands

SCONTROL = """case "$*" in
ping) echo "Slurmctld(primary) at ctl is UP" ;;
"show hostnames node["*) printf "node%d\\n" 0 1 ;;
"show hostnames"*) tr , "\\n" <<<"$3" ;;
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

    def start(verify: bool = False, usable: tuple[int, ...] = (), wait: int = 0, restart: int = 0, **profile):
        size = {"nodes": usable[-1] if usable else 2, "usable": usable, "wait_seconds": wait}
        files = {"run_dir": str(run), "workdir": str(tmp_path), "nodes_file": str(tmp_path / "site" / "nodes.jsonl")}
        job = Job(**files, **size, python=sys.executable, time="10:00", steps=5, verify=verify)
        text = render(job, ClusterProfile.model_validate({"health": {"level": "off"}, **profile}))
        command = ["bash", "-c", 'export JOB_SHELL=$$; exec bash -c "$0"', text]
        environment = slurm.environment(HOME=str(tmp_path), SLURM_RESTART_COUNT=str(restart))
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    start.run = run
    return start


def failed_nodes(job) -> list[tuple[str, str]]:
    return [(line["node"], line["cause"]) for line in read_lines(job.run.parent / "site" / "nodes.jsonl")]


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
    assert last_word(job) == "start"
    assert "requeue 7" in slurm.calls("scontrol")
    assert slurm.calls("scancel") == []


def test_a_mark_of_an_earlier_start_says_nothing_of_this_one(slurm, job):
    (job.run / "slurm" / "marks-6.0").mkdir()
    (job.run / "slurm" / "marks-6.0" / "mistake").touch()
    slurm.answer("srun", f"{SRUN}exit 1")
    job()
    assert last_word(job) == "start"
    assert not (job.run / "slurm" / "marks-6.0").exists()


def test_what_a_job_runs_gets_the_whole_environment_of_its_script(slurm, job):
    slurm.answer("srun", f"{SRUN}exit 1")
    job(health={"level": "basic"})
    assert all("--export=ALL" in call.split() for call in slurm.calls("srun"))


def test_an_srun_that_refuses_the_health_check_is_told_and_no_node_is_blamed(slurm, job):
    slurm.answer("srun", 'echo "srun: error: Unable to create step for job 7: Memory required by task" >&2; exit 1')
    job(health={"level": "basic"})
    end = diary(job.run).records[-1]
    assert end["reason"] == "start"
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
    assert last_word(job) == "start" and "requeue 7" in slurm.calls("scontrol")


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


# ---- budgets by cause


def begin_again(job, times: int, **profile) -> list[str]:
    """The last words of so many starts of the job, one after another."""
    words = []
    for _ in range(times):
        job(**profile)
        words.append(last_word(job))
    return words


def test_each_cause_has_restarts_of_its_own_and_then_the_job_gives_up(slurm, job):
    started = f'echo \'{{"event": "start", "attempt": "7.0"}}\' >{job.run}/events.jsonl'
    slurm.answer("srun", f"{SRUN}{started}; exit 1")
    restarts = {"broken": 1, "hang": 0}
    assert begin_again(job, 2, restarts=restarts) == ["broken", "crash_loop"]
    message = diary(job.run).records[-1]["message"]
    assert "the ranks broke, and 1 restarts after that brought no newer checkpoint than none: giving up" in message
    assert slurm.calls("scancel") == ["--quiet 8"], "the rest of the chain would meet the same"
    slurm.answer("srun", f"{SRUN}{started}; touch {job.run}/slurm/marks-7.0/hang; exit 1")
    assert begin_again(job, 1, restarts=restarts) == ["crash_loop"], "a hang may not come once here"
    assert "the ranks hung, and 0 restarts" in diary(job.run).records[-1]["message"]


def test_a_job_whose_script_was_lost_with_its_node_too_often_gives_up_when_it_begins(slurm, job):
    lost = "submit - -\nbegin 7.0 none\nbegin 7.1 none\nbegin 7.2 none\n"
    (job.run / "slurm" / "attempts").write_text(lost)
    slurm.answer("srun", f"{SRUN}exit 1")
    assert job(restarts={"node_lost": 2}).returncode == 1
    assert (last_word(job), slurm.calls("srun")) == ("crash_loop", [])
    (job.run / "slurm" / "attempts").write_text(lost)
    job(restarts={"node_lost": 3})
    assert last_word(job) == "start"


def test_where_no_job_may_start_again_the_chain_goes_on(slurm, job):
    slurm.answer("srun", f"{SRUN}exit 1")
    done = job(requeue=False)
    assert done.returncode == 1 and "the next job of the chain goes on" in done.stderr
    assert not [call for call in slurm.calls("scontrol") if call.startswith("requeue")]
    assert slurm.calls("scancel") == []


# ---- nodes that ranks blame


def test_a_node_that_computes_otherwise_is_remembered_and_left_out(slurm, job):
    slurm.answer("srun", f"{SRUN}touch {job.run}/slurm/marks-7.0/corrupt-node1; exit 1")
    job()
    end = diary(job.run).records[-1]
    assert (end["reason"], failed_nodes(job)) == ("corrupt", [("node1", "corrupt")])
    assert "node1: a node computed something else than the others" in end["message"]
    assert [call for call in slurm.calls("scontrol") if "ExcNodeList=node1" in call]


def test_a_node_that_hung_is_remembered_and_the_job_starts_again(slurm, job):
    slurm.answer("srun", f"{SRUN}touch {job.run}/slurm/marks-7.0/hang-node0; exit 1")
    job()
    assert (last_word(job), failed_nodes(job)) == ("hang", [("node0", "hang")])


def test_a_node_that_slurm_lost_is_remembered_by_the_script_that_hears_of_it(slurm, job):
    log = job.run / "slurm" / "train-7.log"
    slurm.answer("srun", f'{SRUN}echo "srun: error: Node failure on node1" >>{log}; kill -TERM $JOB_SHELL; exit 1')
    assert job().returncode == 143
    assert (last_word(job), failed_nodes(job)) == ("node_lost", [("node1", "lost")])


def test_a_node_that_took_the_script_along_is_remembered_by_the_next_start(slurm, job):
    (job.run / "events").mkdir()
    (job.run / "events" / "job-7.0.jsonl").write_text('{"event": "job_start", "job": 7, "nodes": "node[0-1]"}\n')
    slurm.answer("scontrol", SCONTROL.replace("Restarts=0", "Restarts=1"))
    slurm.answer("sinfo", 'case "$*" in *"--nodes=node[0-1] --states=down"*) echo node0 ;; esac')
    slurm.answer("srun", f"{SRUN}exit 1")
    job(restart=1)
    assert failed_nodes(job) == [("node0", "lost")]


# ---- fewer nodes than wanted


def test_a_job_with_fewer_nodes_uses_as_many_as_can_share_the_batch_and_says_so(slurm, job):
    slurm.answer("srun", f"{SRUN}exit 1")
    job(usable=(1, 3))
    (fewer,) = (event for event in diary(job.run).records if event["event"] == "fewer_nodes")
    assert (fewer["wanted"], fewer["have"], fewer["use"]) == (3, 2, 1)
    (ranks,) = (call for call in slurm.calls("srun") if "slurm.rank" in call)
    assert "--nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist=node0" in ranks


def test_a_job_with_fewer_nodes_waits_and_starts_again_when_enough_are_idle_but_once(slurm, job):
    slurm.answer("srun", f"{SRUN}exit 1")
    slurm.answer("sinfo", 'printf "node%d %s\\n" 0 alloc 1 alloc 2 "down*" 3 idle')
    job(usable=(2, 3), wait=60)
    assert (last_word(job), slurm.calls("srun")) == ("grow", [])
    job(usable=(2, 3), wait=60)
    assert last_word(job) == "start", "others were faster, so it goes on with what it has"
    assert [event["use"] for event in diary(job.run).records if event["event"] == "fewer_nodes"] == [2]


def test_nodes_that_a_job_must_do_without_are_not_waited_for(slurm, job):
    slurm.answer("scontrol", SCONTROL.replace("(null)", "node3"))
    slurm.answer("srun", f"{SRUN}exit 1")
    slurm.answer("sinfo", "echo node3 idle")
    job(usable=(2, 3), wait=1)
    assert last_word(job) == "start"


def test_a_job_that_may_go_on_with_fewer_does_so_where_a_broken_node_has_no_spare(slurm, job):
    slurm.answer("srun", f"{SRUN}echo ok >{job.run}/slurm/health-7.0/node0; echo bad >{job.run}/slurm/health-7.0/node1")
    slurm.answer("sinfo", 'printf "node%d\\n" 0 1')
    job(health={"level": "basic"})
    assert last_word(job) == "broken_nodes"
    job(health={"level": "basic"}, usable=(1, 2))
    assert last_word(job) == "unhealthy" and "requeue 7" in slurm.calls("scontrol")
    assert failed_nodes(job) == [("node1", "unhealthy")] * 2


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
