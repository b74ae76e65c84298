"""The checkpoint's contract, with an engine that only writes files."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.files import HashingWriter
from training import checkpoint
from training.checkpoint import RunIdentity, RunState
from training.distributed import World

ALONE = World.alone()
IDENTITY = RunIdentity(
    world_size=1,
    zero_stage=1,
    precision="fp32",
    data="d" * 32,
    tokenizer="t" * 32,
    order={"seed": 1, "sequence_length": 32, "objective": {"name": "next_token"}},
    model={"d_model": 32, "num_layers": 2},
)


class FileEngine:
    """Saves and loads one small file, or has no room for it."""

    error: OSError | None = None

    def save(self, folder: Path):
        (folder / "deepspeed").mkdir()
        with HashingWriter(folder / "deepspeed" / "weights.pt") as file:
            file.write(b"weights" * 100)
        return {"deepspeed/weights.pt": file.digest}, self.error

    def load(self, folder: Path, stage: int, num_ranks: int):
        assert (stage, num_ranks) == (IDENTITY.zero_stage, IDENTITY.world_size)
        assert (folder / "deepspeed" / "weights.pt").read_bytes() == b"weights" * 100


def save(run_dir: Path, step: int, engine=None) -> Path:
    state = RunState(step, step * 16, step * 500)
    return checkpoint.save(engine or FileEngine(), run_dir, state, IDENTITY, ALONE)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in checkpoint.checkpoints_dir(run_dir).iterdir())


def test_what_is_saved_is_found_and_loaded(tmp_path):
    folder = save(tmp_path, 20)
    assert checkpoint.latest_checkpoint(tmp_path) == folder == tmp_path / "checkpoints" / "step-00000020"
    assert checkpoint.load(FileEngine(), folder, ALONE) == RunState(20, 320, 10_000)
    assert checkpoint.damage(folder, ALONE) == []
    assert names(tmp_path) == ["latest", "step-00000020"]


def test_random_states_come_back(tmp_path):
    folder = save(tmp_path, 1)
    expected = torch.rand(3)
    checkpoint.load(FileEngine(), folder, ALONE)
    assert torch.equal(torch.rand(3), expected)


def test_every_file_is_in_the_checksums(tmp_path):
    folder = save(tmp_path, 1)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(json.loads((folder / "checksums.json").read_text())) == files - {"checksums.json"}


def test_a_run_without_checkpoints_starts_at_its_beginning(tmp_path):
    assert checkpoint.choose(tmp_path, ALONE).folder is None


def test_a_half_written_checkpoint_does_not_count_and_is_cleared_away(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "checkpoints" / ".tmp-step-00000020" / "deepspeed").mkdir(parents=True)
    assert checkpoint.choose(tmp_path, ALONE).folder.name == "step-00000010"
    save(tmp_path, 30)
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000030"]


def test_a_kill_between_the_rename_and_latest_loses_nothing_it_had(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000010\n")
    assert checkpoint.choose(tmp_path, ALONE).folder.name == "step-00000010"
    (tmp_path / "checkpoints" / "latest").unlink()
    assert checkpoint.choose(tmp_path, ALONE).folder.name == "step-00000020"


@pytest.mark.parametrize("name", ["state.json", "checksums.json", "rng-00000.pt", "deepspeed/weights.pt"])
@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_any_harmed_file_is_noticed_and_the_one_before_serves(tmp_path, name, harm):
    save(tmp_path, 10)
    path = save(tmp_path, 20) / name
    data = bytearray(path.read_bytes())
    if harm == "delete":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    choice = checkpoint.choose(tmp_path, ALONE)
    assert choice.folder.name == "step-00000010"
    assert name.split("/")[-1] in choice.damaged["step-00000020"][0] or name == "checksums.json"


def test_a_run_with_nothing_but_damage_refuses_to_start_over(tmp_path):
    (save(tmp_path, 10) / "state.json").unlink()
    with pytest.raises(
        ValueError, match=r"every checkpoint is damaged .*delete the folder to train from the beginning"
    ):
        checkpoint.choose(tmp_path, ALONE)


def test_saving_a_step_again_replaces_the_damaged_one(tmp_path):
    save(tmp_path, 10)
    (save(tmp_path, 20) / "deepspeed" / "weights.pt").write_bytes(b"")
    folder = save(tmp_path, 20)
    assert checkpoint.damage(folder, ALONE) == []
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000020"]


def test_a_full_disk_leaves_the_checkpoint_before_it_and_no_trace(tmp_path):
    save(tmp_path, 10)
    engine = FileEngine()
    engine.error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=r"could not be written .No space left on device.*untouched"):
        save(tmp_path, 20, engine)
    assert names(tmp_path) == ["latest", "step-00000010"]
    assert checkpoint.choose(tmp_path, ALONE).folder.name == "step-00000010"


OTHER = {
    "precision": "bf16",
    "data": "e" * 32,
    "tokenizer": "u" * 32,
    "order": {**IDENTITY.order, "seed": 2},
    "model": {**IDENTITY.model, "d_model": 64},
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(RunIdentity) if f.name not in checkpoint.CUT])
def test_a_run_that_differs_is_refused_with_both_values_named(tmp_path, field):
    folder = save(tmp_path, 10)
    checkpoint.check_identity(folder, IDENTITY)
    then, now = getattr(IDENTITY, field), OTHER[field]
    if isinstance(now, dict):
        key = next(key for key in now if now[key] != then[key])
        then, now, named = then[key], now[key], f"{field}.{key}"
    else:
        named = field
    with pytest.raises(ValueError) as caught:
        checkpoint.check_identity(folder, dataclasses.replace(IDENTITY, **{field: OTHER[field]}))
    message = str(caught.value)
    assert f"made with {named} {then!r}, this run has {now!r}" in message and "\n" not in message


def test_another_stage_and_number_of_ranks_may_go_on(tmp_path):
    checkpoint.check_identity(save(tmp_path, 10), dataclasses.replace(IDENTITY, world_size=2, zero_stage=3))


def test_a_rank_that_did_not_write_the_checkpoint_keeps_its_own_random_state(tmp_path):
    folder = save(tmp_path, 1)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    checkpoint.load(FileEngine(), folder, dataclasses.replace(ALONE, rank=1))
    assert torch.equal(torch.rand(3), expected)


@given(st.sets(st.integers(1, 200), min_size=1, max_size=20), st.integers(1, 5), st.none() | st.integers(1, 50))
def test_retention_keeps_the_newest_and_the_milestones_and_nothing_else(steps, keep, every):
    folders = [Path(f"step-{step:08d}") for step in steps]
    gone = {checkpoint.step_of(path) for path in checkpoint.superseded(folders, keep, every)}
    newest = set(sorted(steps)[-keep:])
    milestones = {step for step in steps if every and step % every == 0}
    assert gone == steps - newest - milestones


def test_retention_never_deletes_the_one_to_resume_from(tmp_path):
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000010\n")
    gone = checkpoint.delete_superseded(tmp_path, keep=1, keep_every_steps=None)
    assert [path.name for path in gone] == ["step-00000020", "step-00000030"]
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000040"]


def test_a_folder_that_is_no_checkpoint_is_left_alone(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "checkpoints" / "step-mine").mkdir()
    shutil.copytree(tmp_path / "checkpoints" / "step-00000010", tmp_path / "checkpoints" / "copy")
    assert [path.name for path in checkpoint.complete_checkpoints(tmp_path)] == ["step-00000010"]
