"""Real ranks that meet bad steps: passed over, gone back over, replayed; and one whose memory fails."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.training.runs import events_of, finish, save_config, start_ranks, steps_of, tiny_config
from tests.training.state.ranks import IDENTITY
from training.jumps import FILE, Jump, is_given_up, jumped, reach, read_jumps
from training.spikes import GuardState
from training.state.folder import LATEST, checkpoints_dir, complete_checkpoints, latest_checkpoint, step_name, step_of
from training.state.identity import STATE, RunState, dump_state, read_saved
from training.state.loading import load_weights
from training.worker import EXIT_BROKEN, EXIT_DONE

EXACT = ("step", "loss", "grad_norm", "lr", "samples_consumed", "tokens_consumed", "skipped")
GUARDS = {"window": 8, "min_steps": 8, "spikes": "skip", "deviations": 20.0}


def run_of(dataset, folder: Path, faults: dict, guards: dict | None = None, **sections: dict) -> Path:
    """A run of 25 steps of 16 samples, and what will happen to it."""
    sections = {"checkpoint": {"interval_steps": 10, "keep": 9}, "training": {"steps": 25}} | sections
    save_config(tiny_config(dataset, guards=GUARDS | (guards or {}), **sections), folder)
    (folder / "faults.json").write_text(json.dumps(faults))
    return folder


def train(folder: Path, expected: int = EXIT_DONE) -> list[str]:
    """What two ranks said last."""
    ends = finish(start_ranks(folder, 2, module="tests.training.poisoned_ranks"))
    assert expected in [code for code, _ in ends], ends
    return [error for _, error in ends]


def exact(folder: Path) -> list[list]:
    """What equal runs write alike."""
    return [[line.get(name) for name in EXACT] for line in steps_of(folder)]


def same_end(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same weights and the same window."""
    folders = [latest_checkpoint(folder) for folder in (one, other)]
    a, b = map(load_weights, folders)
    same = all(torch.equal(a[name], b[name]) for name in a)
    return same and read_saved(folders[0]).state == read_saved(folders[1]).state


def go_back_to(folder: Path, step: int, aside: Path) -> Path:
    """A copy of a run as it stood at a checkpoint."""
    shutil.copytree(folder, aside)
    for saved in complete_checkpoints(aside):
        if step_of(saved) > step:
            shutil.rmtree(saved)
    (checkpoints_dir(aside) / LATEST).unlink()
    return aside


def test_bad_steps_are_passed_over_and_a_replay_that_begins_between_them_is_the_same(dataset, tmp_path):
    faults = {"factors": {str(16 * 8): float("nan"), str(16 * 14): 100.0, str(16 * 19): 100.0}}
    folder = run_of(dataset, tmp_path / "run", faults, {"reload_check": True})
    train(folder)
    skips = events_of(folder, "skip")
    assert [(skip["step"], skip["samples"], skip["ranks"]) for skip in skips] == [
        (9, [128, 143], [1]),
        (15, [224, 239], []),
        (20, [304, 319], []),
    ]
    assert skips[0]["reason"] == "the loss is nan (rank 1)" and skips[0]["loss"] is None
    assert all(skip["reason"].startswith("the loss is ") and ", above " in skip["reason"] for skip in skips[1:])
    report = json.loads((folder / "skips" / "step-00000015.json").read_text())
    assert [found["rank"] for found in report["highest_losses"][:4]] == [1] * 4
    assert {found["rank"] for found in report["largest_gradients"].values()} == {1}
    assert {"blocks.1", "blocks.*.attention.qkv.weight", "head.weight"} <= report["largest_gradients"].keys()
    lines = steps_of(folder)
    assert [line["step"] for line in lines if line.get("skipped")] == [9, 15, 20]
    assert lines[8]["loss"] is None and lines[14]["loss"] > 100
    state = read_saved(latest_checkpoint(folder)).state
    assert len(state.guards.losses) == 8 and max(state.guards.losses) < 10
    again = go_back_to(folder, 10, tmp_path / "again")
    train(again)
    assert exact(again) == exact(folder)
    assert same_end(again, folder)
    assert state.probe and read_saved(latest_checkpoint(again)).state.probe == state.probe


def test_a_run_goes_back_over_too_many_spikes_and_the_same_when_it_is_killed_there(dataset, tmp_path):
    spikes = {"factors": {str(16 * step): 100.0 for step in (15, 16, 17)}}
    guards, training = {"spikes": "roll_back", "skips_in_a_row": 2}, {"steps": 25, "zero_stage": 3}
    folder = run_of(dataset, tmp_path / "run", spikes, guards, training=training)
    train(folder)
    (jump,) = read_jumps(folder)
    assert (jump.before, jump.samples) == (16, 16 * 18)
    (event,) = events_of(folder, "roll_back")
    assert (event["step"], event["before"], event["samples"]) == (18, 16, 16 * 18)
    report = json.loads((folder / "skips" / "step-00000018.json").read_text())
    assert {found["rank"] for found in report["largest_gradients"].values()} == {1}
    lines = steps_of(folder)
    assert [line["step"] for line in lines] == list(range(1, 26))
    assert [line["samples_consumed"] for line in lines[9:12]] == [160, 16 * 19, 16 * 20]
    assert not any(line.get("skipped") for line in lines)
    killed = run_of(dataset, tmp_path / "killed", spikes | {"dies_at_jump": True}, guards, training=training)
    train(killed, expected=1)
    assert (killed / FILE).exists() and [line["step"] for line in steps_of(killed)][-1] == 17
    (killed / "faults.json").write_text(json.dumps(spikes))
    train(killed)
    assert exact(killed) == exact(folder)
    assert same_end(killed, folder)


def test_a_rank_with_a_flipped_bit_is_named(dataset, tmp_path):
    guards = {"replica_check_interval": 3, "recompute_interval": 2}
    faults = {"factors": {}, "flips_after": 6}
    folder = run_of(dataset, tmp_path / "run", faults, guards, training={"steps": 25, "zero_stage": 0})
    train(folder, expected=EXIT_BROKEN)
    (event,) = events_of(folder, "corrupt")
    assert (event["step"], event["ranks"], event["certain"]) == (6, [0, 1], False)  # of two neither is in the majority
    for error in events_of(folder, "error"):  # of one, or of both where they say it at the same moment
        assert "step 6: rank 0 on " in error["message"] and ", 1 on " in error["message"]


@pytest.mark.parametrize("seen, gone", [(0, True), (1, False)])
def test_what_was_saved_after_a_jump_is_not_given_up_by_it(seen, gone):
    assert is_given_up(20, seen, [Jump(16, 288, "")]) == gone
    assert not is_given_up(15, seen, [Jump(16, 288, "")])


@pytest.mark.parametrize(
    "saved, num_jumps, expected",
    [
        ({10: 0, 20: 0}, 0, 26),  # the first time back to 20
        ({10: 0, 20: 0}, 1, 20),  # 20 led to spikes again: back to 10
        ({20: 0}, 1, 26),  # there is none but 20
        ({10: 0, 20: 1}, 1, 26),  # 20 was saved since
        ({10: 0, 30: 0}, 1, 26),
        ({}, 0, 26),
    ],
)
def test_a_checkpoint_that_led_to_spikes_twice_is_given_up(tmp_path, saved, num_jumps, expected):
    for step, jumps in saved.items():
        folder = checkpoints_dir(tmp_path) / step_name(step)
        folder.mkdir(parents=True)
        (folder / STATE).write_bytes(dump_state(RunState(step, guards=GuardState(jumps=jumps)), IDENTITY))
    assert reach(tmp_path, 26, num_jumps) == expected


def test_a_jump_is_made_once():
    jumps = [Jump(16, 288, "")]
    state = jumped(RunState(10, 160, 900), jumps)
    assert state == RunState(10, 288, 900, GuardState(jumps=1))
    later = RunState(30, 500, 900, state.guards)
    assert jumped(later, jumps) == later
