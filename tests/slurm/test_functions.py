"""What a job's script decides, with Slurm's commands answering in every way they do on a bad day."""

import pytest

from common.json_lines import read_lines
from launcher.nodes import FAILURE
from tests.slurm.commands import Commands

UP = 'case "$*" in ping) echo "Slurmctld(primary) at ctl is UP"; exit 0 ;; esac\n'
AWAY = 'echo "Unable to contact slurm controller (connect failure)" >&2; exit 1'
HOSTS = 'case "$*" in "show hostnames"*) printf "node%d\\n" {0..3}; exit 0 ;; esac\n'


@pytest.fixture
def slurm(tmp_path):
    return Commands(tmp_path)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def test_a_controller_that_restarts_is_waited_for_and_not_taken_for_a_job_that_went_on_elsewhere(slurm, run):
    slurm.answer("scontrol", f'[ "$CALL" -gt 6 ] || {{ {AWAY}; }}\necho "JobId=7 Restarts=0 Requeue=1"')
    done = slurm.script(run, "leave_if_superseded\necho stays")
    assert done.stdout == "stays\n", done.stderr
    assert done.stderr.count("controller does not answer: waiting") == 1


@pytest.mark.parametrize("answer", [AWAY, "exit 0"])
def test_no_answer_at_all_makes_no_job_leave(slurm, run, answer):
    slurm.answer("scontrol", answer)
    done = slurm.script(run, "SHARDLINE_CONTROLLER_PATIENCE=1\nleave_if_superseded\necho stays")
    assert done.stdout == "stays\n", done.stderr


def test_a_start_leaves_when_slurm_counts_more_restarts_than_its_own(slurm, run):
    slurm.answer("scontrol", 'echo "JobId=7 Restarts=10 Requeue=1"')
    done = slurm.script(run, "restart=9\nleave_if_superseded\necho stays")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the job went on without it" in done.stderr


def test_a_start_asks_to_be_requeued_until_the_controller_is_back(slurm, run):
    slurm.answer(
        "scontrol", f'[ "$CALL" -gt 8 ] || {{ {AWAY}; }}\ncase "$*" in requeue*) kill -TERM $JOB_SHELL ;; esac'
    )
    done = slurm.script(run, 'export JOB_SHELL=$$\nleave_if_superseded() { :; }\nrequeue broken "the ranks broke"')
    assert "does not requeue" not in done.stderr
    assert slurm.calls("scontrol")[-1] == "requeue 7"
    assert [event["reason"] for event in read_lines(run / "events" / "job-7.0.jsonl")] == ["broken"]


def test_a_refusal_of_a_controller_that_is_there_is_taken_as_one(slurm, run):
    slurm.answer("scontrol", UP + "exit 1")
    done = slurm.script(run, 'requeue broken "the ranks broke"')
    assert done.returncode == 1
    assert "Slurm does not requeue this job" in done.stderr


def test_the_warning_reaches_the_ranks_though_the_controller_is_away(slurm, run, tmp_path):
    for name in ("scontrol", "scancel", "squeue"):
        slurm.answer(name, AWAY)
    script = f"""
bash -c 'trap "touch {tmp_path}/heard; exit" USR1; while :; do sleep 0.05; done' & ranks=$!
sleep 0.5
kill -USR1 $$
await "$ranks"
"""
    done = slurm.script(run, script)
    assert (tmp_path / "heard").exists(), done.stderr


def test_a_warning_that_comes_before_the_ranks_is_passed_on_once_they_are_there(slurm, run, tmp_path):
    script = f"""
kill -USR1 $$
bash -c 'trap "touch {tmp_path}/heard; exit" USR1; while :; do sleep 0.05; done' & ranks=$!
sleep 0.5
[ "$stopping" = 0 ] || ask_ranks
await "$ranks"
"""
    slurm.script(run, script)
    assert (tmp_path / "heard").exists()


# ---- why ranks broke, and how often they may

KILLED = "srun: error: node1: task 1: Killed\nsrun: error: node0: task 0: Terminated"
ENDED = "srun: error: node0: task 0: Exited with exit code 1\nsrun: error: node1: task 1: Killed"
OOM = "slurmstepd-node1: error: Detected 1 oom_kill event in StepId=7.1. Some of the step tasks have been OOM Killed."
GPU = '{"event": "error", "message": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"}'
STUCK = '{"event": "error", "message": "rank 3 got nowhere for 10 minutes in step 7"}'
TRAINS = '{"event": "start", "world_size": 2, "attempt": "7.0", "job": 7}'


@pytest.mark.parametrize(
    ("log", "error", "events", "cause"),
    [
        (ENDED, "", TRAINS, "broken"),
        (ENDED, "", "", "start"),
        (ENDED, "", TRAINS.replace("7.0", "6.0"), "start"),
        (KILLED, "", TRAINS, "killed"),
        (f"{OOM}\n{KILLED}", "", TRAINS, "out_of_memory"),
        (ENDED, GPU, TRAINS, "out_of_memory"),
        (ENDED, STUCK, TRAINS, "hang"),
    ],
)
def test_why_ranks_broke_is_told_by_what_they_and_slurm_left(slurm, run, log, error, events, cause):
    (run / "slurm").mkdir(parents=True)
    (run / "events").mkdir()
    job_log = run / "slurm" / "train-7.log"
    job_log.write_text(f"{OOM}, of an earlier start\n")
    (run / "events.jsonl").write_text(events + "\n")
    (run / "events" / "error-7.0-abc.jsonl").write_text(error + "\n")
    done = slurm.script(run, f"cat >>{job_log} <<'END'\n{log}\nEND\ncause")
    assert done.stdout == f"{cause}\n", done.stderr


@pytest.mark.parametrize(
    ("lines", "cause", "count"),
    [
        ("begin 7.0 none", "broken", 1),
        ("begin 7.0 none; end 7.0 broken; begin 7.1 none", "broken", 2),
        ("begin 7.0 none; end 7.0 broken; begin 7.1 none", "hang", 1),
        ("begin 7.0 none; end 7.0 broken; submit - -; begin 8.0 none", "broken", 1),
        ("begin 7.0 old; end 7.0 broken; begin 7.1 none", "broken", 1),
        ("begin 7.0 none; end 7.0 grow; begin 7.1 none; end 7.1 stopped; begin 7.2 none", "broken", 1),
        ("begin 7.0 none; begin 7.1 none; begin 7.2 none", "node_lost", 3),
        ("begin 7.0 none; begin 7.1 none; begin 7.2 none", "broken", 1),
        ("begin 7.0 none; end 7.0 node_lost; begin 7.1 none; end 7.1 node_lost", "node_lost", 2),
        ("begin 7.0 old", "broken", 0),
    ],
)
def test_starts_that_brought_no_newer_checkpoint_are_counted_by_cause(slurm, run, lines, cause, count):
    (run / "slurm").mkdir(parents=True)
    (run / "slurm" / "attempts").write_text("submit - -\n" + lines.replace("; ", "\n") + "\n")
    assert slurm.script(run, f"fruitless {cause}").stdout == f"{count}\n"


# ---- what a site remembers of its nodes


def test_a_failure_of_a_node_is_a_line_of_its_own_whatever_stood_there(slurm, run):
    run.mkdir()
    (run / "nodes.jsonl").write_text('{"torn": ')
    slurm.script(run, "remember lost 'did \"not\" answer' node2\nremember unhealthy 'no GPU' node1 node3")
    found = read_lines(run / "nodes.jsonl", FAILURE)
    assert [(line["node"], line["cause"], line["job"]) for line in found] == [
        ("node2", "lost", 7),
        ("node1", "unhealthy", 7),
        ("node3", "unhealthy", 7),
    ]
    assert (found[0]["why"], found[0]["run"]) == ("did ?not? answer", str(run))


def test_what_befell_all_nodes_of_a_job_is_held_against_none(slurm, run):
    slurm.script(run, "remember unhealthy 'no answer' node0 node1 node2 node3\nremember unhealthy 'no answer'")
    assert not (run / "nodes.jsonl").exists()
    slurm.script(run, "remember unhealthy 'no GPU' node0", num_nodes=1)
    assert len(read_lines(run / "nodes.jsonl")) == 1


def test_a_file_of_nodes_that_cannot_be_written_is_told_and_stops_nothing(slurm, run):
    done = slurm.script(run, "NODES_FILE=/proc/none/nodes.jsonl\nremember lost 'no answer' node2\necho goes on")
    assert done.stdout == "goes on\n"
    assert done.stderr.count("\n") == 1 and "node2 is not remembered to have failed (lost)" in done.stderr


def test_only_nodes_of_the_job_can_be_blamed(slurm, run):
    slurm.answer("scontrol", HOSTS)
    marks = "mkdir -p $MARKS; touch $MARKS/corrupt-node2 $MARKS/corrupt-elsewhere $MARKS/hang-node1 $MARKS/mistake"
    assert slurm.script(run, f"{marks}\nblamed corrupt\nblamed hang").stdout == "node2\nnode1\n"


def test_the_job_of_a_chain_knows_those_that_wait_after_it(slurm, run):
    slurm.answer("squeue", 'printf "%s\\n" 4 8 9 12')
    done = slurm.script(run, 'printf "%s\\n" 4 7 8 9 >"$RUN/slurm/chain"\nlater_jobs')
    assert done.stdout.split() == ["8", "9"]


def test_a_run_that_another_job_is_training_is_left_to_it(slurm, run):
    slurm.answer("scontrol", UP)
    slurm.answer("squeue", 'case "$*" in *--jobs=5*) echo 5 ;; *) exit 1 ;; esac')
    done = slurm.script(
        run, 'echo 4.0 >"$RUN/attempt"\nrefuse_two_jobs\necho goes on\necho 5.1 >"$RUN/attempt"\nrefuse_two_jobs'
    )
    assert (done.returncode, done.stdout) == (1, "goes on\n")
    assert "job 5 is training this run already" in done.stderr


# ---- nodes that do not answer

MANY = 'case "$*" in "show hostnames"*) printf "node%d\\n" {0..199}; exit 0 ;; esac\n'
LOOK = 'look_for_dead_nodes\necho "$DEAD;$REFUSAL"'


def test_nodes_are_asked_by_one_srun_and_only_the_silent_ones_again(slurm, run):
    slurm.answer("scontrol", MANY)
    slurm.answer(
        "srun", 'case "$*" in *--nodelist=node7*) exit 1 ;; *true) ;; *) printf "node%d\\n" {0..6} {8..198} ;; esac'
    )
    done = slurm.script(run, LOOK, num_nodes=200)
    assert done.stdout == "node7;\n", done.stderr
    assert len(slurm.calls("srun")) == 3  # node199 answers when asked alone
    assert slurm.calls("srun")[0].startswith("--export=ALL --overlap")


def test_when_very_many_nodes_are_silent_no_more_processes_are_started(slurm, run):
    slurm.answer("scontrol", MANY)
    slurm.answer("srun", "echo node0")
    done = slurm.script(run, LOOK, num_nodes=200)
    assert done.stdout.count("node") == 199
    assert len(slurm.calls("srun")) == 1


def test_an_srun_that_refuses_is_no_dead_node(slurm, run):
    words = "srun: fatal: SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually exclusive."
    slurm.answer("scontrol", UP + HOSTS)
    slurm.answer("squeue", "echo RUNNING")
    slurm.answer("srun", f'echo "{words}" >&2; exit 1')
    done = slurm.script(run, f"{LOOK}\nleave_dead_nodes\necho goes on")
    assert done.stdout == f";{words}\ngoes on\n"
    assert f"no node could be asked whether it lives: {words}" in done.stderr
    assert "does not answer" not in done.stderr


def test_a_node_that_is_lost_is_named_and_slurm_waited_for(slurm, run):
    slurm.answer("scontrol", UP + HOSTS + 'echo "SlurmdTimeout           = 300 sec"')
    slurm.answer("squeue", "echo RUNNING")
    slurm.answer("srun", 'case "$*" in *--nodelist=*) exit 1 ;; *) printf "node%d\\n" 0 1 3 ;; esac')
    done = slurm.script(run, "pause() { kill -TERM $$; sleep 0.1; }\nleave_dead_nodes")
    assert "node2 does not answer: waiting up to 660 s" in done.stderr
    (event,) = read_lines(run / "events" / "job-7.0.jsonl")
    assert (event["event"], event["nodes"]) == ("node_lost", "node2")
