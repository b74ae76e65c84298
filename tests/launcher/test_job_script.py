"""Job files: what they say for the example clusters, and that no name can make them say anything else."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launcher import cli
from launcher.job_script import Job, directive, expand, job_name, quote, render
from launcher.profiles import ClusterProfile, names
from tests.launcher.hostile import NAMES

GOLDEN = Path(__file__).parent / "golden"


def bash(script: str, **environment: str) -> bytes:
    command = ["bash", "--noprofile", "--norc", "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, check=True).stdout


# ---- golden files


@pytest.fixture
def dry_run(tmp_path, monkeypatch, capsys):
    """The job file that `submit --dry-run` shows for a cluster, without this machine's paths."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PRACTICE_DIR", str(tmp_path / "practice"))
    tree = {
        "name": "books",
        "tokenizer": {"path": "data/tokenizer"},
        "data": {"path": "data/dataset", "sources": [{"path": "*.jsonl"}]},
        "model": {"num_layers": 1, "d_model": 32, "num_heads": 2, "d_ff": 64},
        "training": {"steps": 1000, "sequence_length": 16, "global_batch_size": 64},
        "checkpoint": {"interval_steps": 100},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["shardline", "submit", "run.yaml", "--dry-run", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert not (tmp_path / "runs").exists(), "a dry run writes nothing"
        shown = capsys.readouterr().out
        return shown.replace(str(tmp_path), "/shared").replace(sys.executable, "/venv/bin/python")

    return run


def agrees_with_golden(name: str, text: str) -> bool:
    """Compares with a golden file; SHARDLINE_WRITE_GOLDEN=1 in the environment writes it anew."""
    path = GOLDEN / name
    if os.environ.get("SHARDLINE_WRITE_GOLDEN"):
        path.write_text(text)
    return path.read_text() == text


@pytest.mark.parametrize("profile", names())
def test_the_job_file_of_each_example_cluster_is_the_one_that_was_looked_at(dry_run, profile):
    text = dry_run("--cluster", profile, "--nodes", "2")
    assert agrees_with_golden(f"{profile}.sbatch", text)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_the_job_file_of_a_data_build_is_the_one_that_was_looked_at(dry_run):
    text = dry_run("--cluster", "plain", "--nodes", "2", "--stage", "data", "--only-data")
    assert agrees_with_golden("plain-data.sbatch", text)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_the_job_file_with_a_proof_before_training_is_the_one_that_was_looked_at(dry_run):
    text = dry_run("--cluster", "plain", "--nodes", "2", "--verify")
    assert agrees_with_golden("plain-verify.sbatch", text)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_the_job_file_for_a_range_of_nodes_is_the_one_that_was_looked_at(dry_run):
    text = dry_run("--cluster", "plain", "--nodes", "8", "--min-nodes", "3", "--set", "training.micro_batch_size=2")
    assert agrees_with_golden("plain-elastic.sbatch", text)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


# ---- hostile names

STUBS = {
    "srun": 'printf "%s\\0" "$@" >>"$STUBS/srun.said"; printf "%s" "${HOSTILE-}" >"$STUBS/variable"',
    "scontrol": """case "$*" in
*hostnames*) printf "node0\\nnode1\\n" ;;
*"show job"*) echo "JobId=1 Restarts=0 ExcNodeList=(null) " ;;
*"show config"*) echo "SlurmdTimeout = 1 sec" ;;
requeue*) kill -TERM "$JOB_SHELL" ;;
esac""",
    "squeue": "echo RUNNING",
    "sinfo": 'printf "node%d\\n" 0 1 2 3 4',
    "scancel": "exit 0",
    "module": "exit 0",
    "apptainer": "exit 0",
    "getent": "echo 127.0.0.1",
}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory) -> Path:
    """Commands of a cluster that do nothing but remember what they were told."""
    folder = tmp_path_factory.mktemp("stubs")
    for name, body in STUBS.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def hostile_profile(name: str, container: str) -> ClusterProfile:
    """A profile in which everything that may hold any text holds this one."""
    line = "".join(letter for letter in name if letter >= " " and letter != "\x7f") or "empty"
    return ClusterProfile.model_validate(
        {
            **dict.fromkeys(("partition", "account", "qos", "constraint", "reservation", "gpu_type"), line),
            "gpus_per_node": 1,
            "sbatch": [f"--comment={line}"],
            "srun": [f"--comment={line}"],
            "modules": [line],
            "source": [f"/nowhere/{line}"],
            "environment": {"HOSTILE": line},
            "network_interface": line,
            "scratch": f"/nowhere/{line}",
            "container": {"kind": container, "image": line, "mounts": [line], "options": [f"--x={line}"]},
            "health": {"level": "off" if container == "pyxis" else "basic"},
        }
    )


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:30])
def test_a_hostile_name_neither_breaks_a_job_file_nor_does_anything_when_it_runs(tmp_path, stubs, name):
    container = ("pyxis", "apptainer")[NAMES.index(name) % 2]
    run_dir, workdir, here = (tmp_path / f"{part}-{name.replace('/', '_')}" for part in ("run", "work", "here"))
    workdir.mkdir()
    here.mkdir()
    job = Job(str(run_dir), str(workdir), f"/nowhere/{name}", 2, "10:00", steps=5)
    profile = hostile_profile(name, container)
    script = tmp_path / "job.sh"
    script.write_text(render(job, profile), encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True)
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": "2", "SLURM_JOB_PARTITION": "p"}
    environment = {"PATH": f"{stubs}:/usr/bin:/bin", "STUBS": str(tmp_path), "LC_ALL": "C.UTF-8", **slurm}
    command = ["bash", "-c", 'export JOB_SHELL=$$; exec bash "$0"', str(script)]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 1, done.stderr  # it asks to be requeued

    assert not list(here.iterdir())
    assert not list(workdir.iterdir())
    assert sorted(path.name for path in run_dir.iterdir()) == ["events", "logs", "slurm"]
    assert not list(tmp_path.rglob("CANARY*"))
    expected = {run_dir.name, workdir.name, here.name, "job.sh", "srun.said", "variable"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert (tmp_path / "variable").read_text() == profile.environment["HOSTILE"].replace("${IFS}", " \t\n")
    said = (tmp_path / "srun.said").read_text().split("\0")
    if container == "pyxis":
        python = said.index("slurm.rank") - 3
        assert said[python : python + 5] == [f"/nowhere/{name}", "-P", "-m", "slurm.rank", str(run_dir)]
        image = profile.container.image.replace("${IFS}", " \t\n")
        assert f"--container-image={image}" in said


# ---- quoting, for any text

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30)


@given(TEXT)
def test_a_quoted_word_means_its_text_and_stands_on_one_line(text):
    assert bash(f"printf %s {quote(text)}") == text.encode()
    assert "\n" not in quote(text)


@given(TEXT.filter(lambda text: "${" not in text), TEXT.filter(lambda text: "${" not in text))
def test_an_expanded_word_means_its_text_but_for_named_variables(before, after):
    value = "a b'$(touch CANARY)*"
    word = expand(before + "${NAME}" + after + "${UNSET}")
    assert bash(f"set -u; printf %s {word}", NAME=value) == (before + value + after).encode()


def test_a_control_character_in_an_option_of_sbatch_is_refused_by_a_sentence():
    with pytest.raises(ValueError, match="--partition: 'a\\\\nb' holds control characters"):
        directive("--partition", "a\nb")


def test_the_job_is_called_like_the_run_on_one_line_of_bearable_length():
    assert job_name("books", "train") == "books"
    assert job_name("a\nb", "data") == "a_b-data"
    assert len(job_name("x" * 300, "train")) <= 64


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_every_python_of_a_job_looks_for_modules_in_no_folder_of_the_users(path):
    started = re.findall(r'"\$PYTHON" .*', path.read_text())
    assert started
    assert all(line.startswith('"$PYTHON" -P -m ') for line in started)
