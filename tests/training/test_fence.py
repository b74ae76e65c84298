"""What an earlier start of a run may still do once a later one has taken the run over."""

import subprocess
import sys
import time

import pytest

from tests.training.state.ranks import VectorEngine, save_step
from training import fence
from training.distributed import World
from training.lock import refuse_second_writer, sole_writer
from training.state.folder import complete_checkpoints


def world_of(attempt: str) -> World:
    return World.alone(attempt=attempt)


def save(run_dir, attempt, step, meanwhile=lambda: None):
    """Saves a checkpoint; `meanwhile` happens while it is being written."""
    return save_step(run_dir, step, world_of(attempt), VectorEngine(while_saving=meanwhile))


def test_a_superseded_attempt_saves_nothing(tmp_path):
    fence.take(tmp_path, "7.0")
    save(tmp_path, "7.0", 10)
    fence.take(tmp_path, "7.1")
    with pytest.raises(fence.Superseded, match=r"7\.1 has taken this run over from 7\.0"):
        save(tmp_path, "7.0", 20)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000010"]


def test_a_save_that_is_overtaken_midway_leaves_no_checkpoint_and_no_trace(tmp_path):
    fence.take(tmp_path, "7.0")
    with pytest.raises((fence.Superseded, OSError)):
        save(tmp_path, "7.0", 20, meanwhile=lambda: fence.take(tmp_path, "7.1"))
    assert complete_checkpoints(tmp_path) == []
    save(tmp_path, "7.1", 20)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000020"]


def test_even_a_rename_that_comes_after_the_last_look_finds_nothing_to_rename(tmp_path, monkeypatch):
    fence.take(tmp_path, "7.0")
    looks = []

    def look(run_dir, attempt):  # the second look is the last before the rename; the node then hangs for a while
        looks.append(fence.read(run_dir))
        if len(looks) == 2:
            fence.take(run_dir, "7.1")

    monkeypatch.setattr(fence, "check", look)
    with pytest.raises(OSError, match="could not be written"):
        save(tmp_path, "7.0", 20)
    assert looks == ["7.0", "7.0"]
    assert complete_checkpoints(tmp_path) == []


def test_an_earlier_restart_that_comes_late_cannot_take_the_run_back(tmp_path):
    fence.take(tmp_path, "7.2")
    with pytest.raises(fence.Superseded):
        fence.take(tmp_path, "7.1")
    fence.take(tmp_path, "8.0")


def test_a_restart_of_a_job_waits_out_its_own_earlier_attempt_but_no_other_launch(tmp_path, monkeypatch):
    monkeypatch.setattr("training.lock.TAKEOVER_SECONDS", 0.3)
    lone = World.alone()
    monkeypatch.setenv(fence.VARIABLE, "7.0")
    with sole_writer(tmp_path, lone) as first:
        assert first.attempt == fence.read(tmp_path) == "7.0"
        monkeypatch.setenv(fence.VARIABLE, "7.1")
        with sole_writer(tmp_path, lone) as second:
            assert second.attempt == fence.read(tmp_path) == "7.1"
        monkeypatch.delenv(fence.VARIABLE)
        with pytest.raises(ValueError, match=r"attempt 7\.0 is training this run already"):
            refuse_second_writer(tmp_path)
    with sole_writer(tmp_path, lone) as local:
        assert local.attempt.startswith("local-")
        monkeypatch.setenv(fence.VARIABLE, "8.0")
        with pytest.raises(ValueError, match="is training this run already"):
            sole_writer(tmp_path, lone).__enter__()
        assert fence.read(tmp_path) == local.attempt


def test_a_process_that_hangs_leaves_when_another_attempt_takes_over(tmp_path):
    fence.take(tmp_path, "7.0")
    program = (
        "import sys, time; from pathlib import Path; from training import fence\n"
        "fence.POLL_SECONDS = 0.05\n"
        "with fence.watched(Path(sys.argv[1]), '7.0'):\n"
        "    print('hanging', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    hanging = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert hanging.stdout and hanging.stdout.readline() == "hanging\n"
    started = time.monotonic()
    fence.take(tmp_path, "7.1")
    _, words = hanging.communicate(timeout=120)
    assert hanging.returncode == fence.SUPERSEDED
    assert "7.1 has taken this run over" in words
    assert time.monotonic() - started < 20
