"""What `submit` looks at before anything is in the queue, and how `status` reads a run's files and the queue."""

import json
import re
import sys
import time

import pytest
import yaml

from launcher import cli, slurm_commands
from launcher.config import check_config
from launcher.submit import Request, doubt, problems
from tests.slurm.commands import Commands
from tests.training.runs import tiny_config, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def tree(dataset, tmp_path):
    tree = tiny_config(dataset).model_dump(mode="json")
    return {**tree, "runs_dir": str(tmp_path / "runs"), "tokenizer": {"path": str(tmp_path / "tokenizer")}}


@pytest.fixture
def faults(tree, tmp_path):
    """Problems of submitting a small run with changed keys of config, profile and request."""

    def find(profile: dict | None = None, request: dict | None = None, **sections) -> list[str]:
        changed = {name: {**tree[name], **keys} if isinstance(keys, dict) else keys for name, keys in sections.items()}
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump({"ranks_per_node": 2, **(profile or {})}))
        config = check_config({**tree, **changed}, "test")
        return problems(config, Request(**{"cluster": str(path), "nodes": 2, "time": "01:00:00", **(request or {})}))

    return find


def test_a_sound_run_has_no_problems(faults):
    assert faults() == []


def test_a_batch_that_the_ranks_cannot_share_is_told_with_one_they_can(faults):
    (fault,) = faults(request={"nodes": 3})
    assert (
        "16 is not a multiple of nodes x ranks per node x micro_batch_size = 3 x 2 x 2; use a multiple of 12" in fault
    )


def test_ranks_of_a_layer_that_no_node_has_room_for_are_refused(faults):
    (fault,) = faults(parallel={"tensor": 4}, model={"num_kv_heads": 4, "vocab_size": 308})
    assert "parallel.tensor: the 4 ranks that share a layer would not all be on one node, which has 2 ranks" in fault
    assert faults(parallel={"tensor": 2}, model={"vocab_size": 308}, request={"nodes": 8}) == []
    (fault,) = faults(parallel={"context": 4}, model={"num_kv_heads": 4}, request={"nodes": 3})
    assert "nodes x ranks per node = 6 is no multiple of parallel.context 4" in fault
    (fault,) = faults(parallel={"tensor": 2}, model={"vocab_size": 308}, request={"nodes": 3})
    assert "micro_batch_size = 3 x 2 x 2 / parallel.tensor 2; use a multiple of 6" in fault


def test_a_run_that_the_plan_says_will_not_fit_is_warned_of_by_what_would_show_a_way(tree, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("gpus_per_node: 8\ngpu: h100-80gb\n")
    request = Request(cluster=str(path), nodes=1, time="01:00:00")
    config = check_config(tree, "test")
    assert doubt(config, request) is None
    large = {"num_layers": 80, "d_model": 8192, "num_heads": 64, "num_kv_heads": 8, "d_ff": 28672}
    words = doubt(check_config({**tree, "model": large}, "test"), request)
    assert "will not fit" in words and "of 80 GB a GPU" in words
    assert "shardline plan CONFIG --gpu h100-80gb --gpus 8 --search" in words
    path.write_text("gpus_per_node: 8\ngpu: h100000\n")
    with pytest.raises(ValueError, match="'h100000' is not in the catalogue"):
        doubt(config, request)


def test_rows_and_vocabularies_that_ranks_cannot_cut_evenly_are_told_with_ones_they_can(faults):
    (fault,) = faults(parallel={"tensor": 2})
    assert "model.vocab_size: 307 rows cannot be shared evenly by parallel.tensor 2 ranks; set it to 308" in fault
    odd = {"sequence_length": 31, "micro_batch_size": 1}
    (fault,) = faults(parallel={"tensor": 2}, model={"vocab_size": 308}, training=odd)
    assert "1 samples of 31 tokens cannot be cut evenly in 2 parts (parallel.tensor 2); set it to 32" in fault
    whole_rows = {"tensor": 2, "sequence_parallel": False}
    assert faults(parallel=whole_rows, model={"vocab_size": 308}, training=odd) == []


def test_a_dataset_that_is_not_there_is_told_unless_a_job_builds_it_first(faults, tmp_path):
    (fault,) = faults(data={"path": str(tmp_path / "none")})
    assert "holds no manifest.json" in fault
    assert "--stage data" in fault
    assert faults(data={"path": str(tmp_path / "none")}, request={"stage": "data"}) == []


def test_paths_that_nodes_do_not_share_are_named(faults, tmp_path):
    found = faults(profile={"shared_paths": ["/lustre", "/home"]})
    assert any(fault.startswith(f"run folder: {tmp_path}") and "/lustre or /home" in fault for fault in found)
    assert any(fault.startswith("data.path: ") for fault in found)
    assert any(fault.startswith("Python: ") for fault in found)
    (fault,) = faults(runs_dir="/dev/shm/runs")
    assert "/dev/shm/runs/run is on tmpfs, the memory of this machine" in fault


def test_a_time_below_the_warning_and_a_run_that_never_saves_are_refused(faults):
    (fault,) = faults(profile={"warning_seconds": 600}, request={"time": "10"})
    assert "--time 10: is not longer than the profile's warning_seconds 600" in fault
    (fault,) = faults(checkpoint={"interval_steps": None})
    assert "checkpoint.interval_steps: is empty" in fault


def test_a_time_that_is_none_is_told_and_one_without_an_end_is_taken(faults):
    for text in ("x", "-5", "1;id"):
        with pytest.raises(ValueError, match=f"--time: '{text}' is not a time limit; allowed: "):
            faults(request={"time": text})
    assert faults(request={"time": "UNLIMITED"}) == faults(request={"time": "1d"}) == []


def test_nodes_of_two_kinds_in_one_job_are_refused_unless_the_choice_is_bracketed(faults):
    (fault,) = faults(profile={"constraint": "a100|a40"})
    assert "bracket it, as [a100|a40]" in fault
    assert faults(profile={"constraint": "[a100|a40]"}) == []
    assert faults(profile={"constraint": "ib&[a100|a40]"}) == []
    assert faults(profile={"constraint": "a100|a40"}, request={"nodes": 1}) == []


def test_an_archive_to_stage_in_must_be_there_and_be_shared(faults, tmp_path):
    stage_in = {"archive": str(tmp_path / "env.tar"), "to": "/local"}
    (fault,) = faults(profile={"stage_in": stage_in})
    assert fault.startswith(f"stage_in.archive: {tmp_path / 'env.tar'} is not a file")
    (tmp_path / "env.tar").touch()
    assert faults(profile={"stage_in": stage_in}) == []


def test_options_of_slurm_in_the_callers_environment_reach_no_command(monkeypatch):
    for name in ("SLURM_MEM_PER_CPU", "SBATCH_TIMELIMIT", "SBATCH_JOB_NAME", "SBATCH_EXPORT", "SQUEUE_USERS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    found = slurm_commands.environment()
    assert [name for name in found if name.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))] == ["SLURM_CONF"]
    assert found["PATH"]


def test_a_python_that_is_not_there_is_told(faults):
    assert any("python: /nowhere/python is not a program" in fault for fault in faults({"python": "/nowhere/python"}))


# ---- the command line, with a queue that says what it is told to

SQUEUE = """#!/bin/bash
case "$*" in
*--start*) echo "2030-01-02T03:04:05" ;;
*) [ -s "$ANSWER" ] && cat "$ANSWER" || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; } ;;
esac
"""


@pytest.fixture
def shardline(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["shardline", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


@pytest.fixture
def submitted(tree, tmp_path, monkeypatch):
    """A run that job 7 was submitted for; `queue` says what squeue answers, `tell` adds events."""
    folder = tmp_path / "runs" / "run"
    (folder / "slurm").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "squeue").write_text(SQUEUE)
    (commands / "squeue").chmod(0o755)
    monkeypatch.setenv("ANSWER", str(tmp_path / "answer"))
    record = {"time": time.time(), "job": 7, "stage": "train", "commands": str(commands)}
    (folder / "slurm" / "jobs.jsonl").write_text(json.dumps(record) + "\n")

    class Submitted:
        run = folder

        @staticmethod
        def queue(state: str, reason: str = "None") -> None:
            fields = ("7", state, reason, "2030-01-02T03:04:05", "1:00", "1:00:00", "node[0-1]", "run")
            (tmp_path / "answer").write_text("\x1f".join(fields) + "\n")

        @staticmethod
        def tell(event: str, **facts) -> None:
            with (folder / "events.jsonl").open("a") as file:
                file.write(json.dumps({"time": time.time(), "event": event, "job": 7, "restart": 0, **facts}) + "\n")

    return Submitted


def test_a_waiting_job_tells_why_and_when_it_is_expected_to_start(submitted, shardline):
    submitted.queue("PENDING", "Resources")
    code, shown, _ = shardline("status", submitted.run)
    assert code == 0
    assert "queued  waiting for nodes to become free (Resources)" in shown
    assert "02 Jan 2030" in shown


def test_a_running_job_tells_step_loss_speed_and_time_left(submitted, shardline):
    submitted.queue("RUNNING")
    submitted.tell("job_start")
    assert json.loads(shardline("status", submitted.run, "--json")[1])["detail"] == "nodes are being checked"
    submitted.tell("launch")
    assert json.loads(shardline("status", submitted.run, "--json")[1])["detail"] == "ranks are starting"
    submitted.tell("ready")
    line = {"step": 5, "loss": 2.5, "tokens_per_second": 1000.0, "mfu": 0.4, "step_seconds": 2.0, "time": time.time()}
    (submitted.run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    facts = json.loads(shardline("status", submitted.run, "--json")[1])
    assert (facts["state"], facts["step"], facts["steps"], facts["loss"]) == ("running", 5, 20, 2.5)
    assert (facts["mfu"], facts["seconds_left"]) == (0.4, 30.0)


def test_a_requeued_job_tells_why_it_stopped_and_which_nodes_were_left_out(submitted, shardline):
    submitted.queue("PENDING", "BeginTime")
    submitted.tell("unhealthy", node="node1", why="7 GPUs, 8 wanted")
    submitted.tell("job_end", reason="unhealthy", message="health check failed")
    facts = json.loads(shardline("status", submitted.run, "--json")[1])
    assert (facts["state"], facts["detail"]) == ("requeued", "health check failed")
    assert facts["excluded"] == ["node1: 7 GPUs, 8 wanted"]


@pytest.mark.parametrize(("reason", "state"), [("finished", "finished"), ("crash_loop", "broken"), ("time", "stopped")])
def test_a_job_that_slurm_has_forgotten_is_told_by_its_own_last_word(submitted, shardline, reason, state):
    submitted.tell("job_end", reason=reason, message="its last word")
    code, shown, _ = shardline("status", submitted.run)
    assert code == 0
    assert f"{state}  its last word" in shown


def test_a_job_that_vanished_without_a_word_is_lost(submitted, shardline):
    assert "lost  Slurm knows the job no more" in shardline("status", submitted.run)[1]


def test_all_runs_of_a_folder_are_shown_and_no_run_is_said_to_be_none(submitted, shardline, tmp_path):
    assert str(submitted.run) in shardline("status", "--runs", tmp_path / "runs")[1].replace("\n", "")
    assert "no run was submitted" in shardline("status", "--runs", tmp_path)[1].replace("\n", " ")
    code, _, words = shardline("status", tmp_path)
    assert (code, words.count("\n")) == (2, 1)


def test_a_missing_log_and_a_missing_slurm_are_one_sentence(submitted, shardline, tree, tmp_path, monkeypatch):
    code, _, words = shardline("logs", submitted.run, "--rank", "3")
    assert code == 2
    assert "no rank has started yet" in words
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**tree, "name": "other"}))
    monkeypatch.setenv("PATH", str(tmp_path))
    profile = tmp_path / "cluster.yaml"
    profile.write_text("ranks_per_node: 2")
    code, _, words = shardline(
        "submit", tmp_path / "run.yaml", "--cluster", profile, "--nodes", "2", "--time", "1:00:00"
    )
    assert code == 2
    assert "sbatch: not found" in words


# ---- what reaches sbatch


@pytest.fixture
def sbatch(tree, tmp_path, monkeypatch):
    """Submits a small run to commands that remember what they were told; the calls of sbatch that were no trial."""
    slurm, config = Commands(tmp_path), tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tree))
    trials = 'case "$*" in *--test-only*) exit 0 ;; esac\n'
    slurm.answer("sbatch", trials + "echo $((40 + CALL))")
    slurm.answer("sinfo", 'printf "node%d main*\\n" 0 1 2; echo "node9 other"')
    monkeypatch.setenv("PATH", f"{slurm.folder}:/usr/bin:/bin")

    def run(shardline, *words: str, **profile):
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump({"lemons": {"file": str(tmp_path / "nodes.jsonl")}, **profile}))
        code, shown, error = shardline("submit", config, "--cluster", file, *words)
        return code, [call for call in slurm.calls("sbatch") if "--test-only" not in call], shown + error

    run.slurm, run.folder, run.file = slurm, tmp_path / "runs" / "run", tmp_path / "nodes.jsonl"
    return run


def fail(file, node: str, cause: str = "corrupt") -> None:
    with file.open("a") as lines:
        lines.write(json.dumps({"time": time.time() - 5000, "node": node, "cause": cause, "why": "seen"}) + "\n")


def test_nodes_that_failed_too_often_are_left_out_and_named(sbatch, shardline):
    fail(sbatch.file, "node1")
    fail(sbatch.file, "node9")
    code, (call,), shown = sbatch(shardline, "--nodes", "2", sbatch=["--exclude=login0"])
    assert (code, call) == (0, "--parsable --exclude=login0,node1 train.sbatch"), shown
    assert "left out for failing too often: node1 (1 corrupt)" in shown


def test_left_out_nodes_may_be_taken_all_the_same_and_must_be_where_there_are_no_others(sbatch, shardline):
    fail(sbatch.file, "node1")
    assert sbatch(shardline, "--nodes", "2", "--include-lemons")[1] == ["--parsable train.sbatch"]
    (_, call), shown = sbatch(shardline, "--nodes", "4", "--set", "training.micro_batch_size=1")[1:]
    assert call == "--parsable train.sbatch"
    assert "without them there would not be enough nodes: node1" in shown


def test_nodes_that_failed_are_shown_and_can_be_forgotten(sbatch, shardline):
    fail(sbatch.file, "node1")
    fail(sbatch.file, "node2", "lost")
    sbatch(shardline, "--nodes", "1")
    shown = shardline("status", sbatch.folder, "--nodes")[1]
    assert [word in shown for word in ("node1", "1 corrupt", "node2", "1 lost", "seen")] == [True] * 5
    facts = json.loads(shardline("status", sbatch.folder, "--nodes", "--json")[1])
    assert [(node["name"], node["until"] is not None) for node in facts["nodes"]] == [("node1", True), ("node2", False)]
    cluster = sbatch.file.with_name("mine.yaml")
    assert shardline("nodes", "forget", "node1", "--cluster", cluster)[0] == 0
    facts = json.loads(shardline("status", "--cluster", cluster, "--nodes", "--json")[1])
    assert [node["name"] for node in facts["nodes"]] == ["node2"]
    code, _, words = shardline("nodes", "forget", "node7", "--cluster", cluster)
    assert code == 2 and "knows no failure of it" in words


def test_a_file_of_nodes_that_is_no_file_stops_no_submission(sbatch, shardline):
    sbatch.file.mkdir()
    code, calls, shown = sbatch(shardline, "--nodes", "1")
    assert (code, calls) == (0, ["--parsable train.sbatch"])
    assert "cannot be read" in shown


def test_jobs_of_a_chain_by_name_wait_for_all_of_the_run_and_more_may_be_added(sbatch, shardline, tree):
    code, calls, shown = sbatch(shardline, "--nodes", "1", "--chain", "2", "--singleton")
    assert (code, calls) == (0, ["--parsable --dependency=singleton train.sbatch"] * 2), shown
    name = next(
        line for line in (sbatch.folder / "slurm" / "train.sbatch").read_text().splitlines() if "job-name" in line
    )
    assert re.fullmatch(r"#SBATCH --job-name=run-[0-9a-f]{6}", name)
    first, second = (sbatch.folder / "slurm" / "chain").read_text().split()
    fields = "\x1f".join(("$ID", "RUNNING", "None", "N/A", "1:00", "1:00:00", "node0", "run"))
    sbatch.slurm.answer("squeue", f'ID=$(grep -o "jobs=[0-9]*" <<<"$*" | cut -d= -f2); echo "{fields}"')
    code, calls, shown = sbatch(shardline, "--nodes", "1", "--singleton")
    assert (code, len(calls)) == (0, 3), shown
    assert (sbatch.folder / "slurm" / "chain").read_text().split()[:2] == [first, second]
    code, calls, shown = sbatch(shardline, "--nodes", "1")
    assert code == 2 and "of this run is running already" in shown
    code, calls, shown = sbatch(shardline, "--nodes", "1", "--singleton", "--set", "optimizer.lr=0.5")
    assert code == 2 and "has another config" in shown and len(calls) == 3


def test_a_run_that_may_go_on_with_fewer_nodes_asks_for_a_range_of_those_that_can_train(sbatch, shardline):
    code, _, shown = sbatch(shardline, "--nodes", "4", "--min-nodes", "2", ranks_per_node=2, cpus_per_rank=3)
    assert code == 0, shown
    text = (sbatch.folder / "slurm" / "train.sbatch").read_text()
    assert "#SBATCH --nodes=2-4\n#SBATCH --cpus-per-task=6\n" in text and "#SBATCH --ntasks" not in text
    assert "USABLE=(2 4)" in text and "PATIENCE=300 " in text


def test_a_range_of_nodes_of_which_none_but_the_most_can_train_is_refused_with_one_that_could(faults):
    (fault,) = faults(request={"nodes": 4, "min_nodes": 3})
    assert fault.startswith("--min-nodes 3: no number of nodes from there to 3 can train this run; use --min-nodes 2 (")
    assert "3 x 2 x 2; use a multiple of 12" in fault
    assert faults(request={"nodes": 4, "min_nodes": 2}) == faults(request={"nodes": 4, "min_nodes": 4}) == []
    (fault,) = faults(request={"nodes": 2, "min_nodes": 3})
    assert "is more than --nodes 2" in fault
    with pytest.raises(ValueError, match="--wait-for-nodes: nodes that wait without end"):
        faults(request={"nodes": 4, "min_nodes": 2, "wait": "UNLIMITED"})
