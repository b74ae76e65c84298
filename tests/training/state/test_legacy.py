"""Converting checkpoints that hold pickles; test_resharding.py goes on from what this makes of real ones."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from common.files import checksum
from common.mistakes import Mistake
from launcher.cli import app
from tests.training.reshard_ranks import FIXTURES
from tests.training.runs import save_config, tiny_config
from tests.training.state.ranks import ALONE, chosen, save_step
from training.state import legacy
from training.state.choosing import choose
from training.state.legacy import SavedState, old_checkpoints, upgrade
from training.state.loading import load_weights

TRAINING = {"steps": 4, "sequence_length": 32, "global_batch_size": 4}
OLD = sorted(path.name for path in FIXTURES.glob("pickles-*"))


@pytest.fixture(params=OLD)
def run_dir(request, tmp_path):
    shutil.copytree(FIXTURES / request.param, tmp_path / "run")
    return save_config(tiny_config("data"), tmp_path / "run")


def shardline(*arguments):
    """The command line, and what it said."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(result.exception, Mistake):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def test_the_command_converts_every_old_checkpoint_and_keeps_it(run_dir):
    (old,) = old_checkpoints(run_dir)
    code, words = shardline("checkpoint", "upgrade", run_dir, "--trust")
    assert code == 0 and f"{old.name}: converted; the old one is kept as before-upgrade-{old.name}" in words
    weights, ours = load_file(run_dir / "weights.safetensors"), load_weights(chosen(run_dir).folder)
    assert all(torch.equal(weight, weights[name]) for name, weight in ours.items())
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "before-upgrade-" + old.name,
        "latest",
        old.name,
    ]
    assert "no checkpoint of it needs converting" in shardline("checkpoint", "upgrade", run_dir)[1]


def test_a_run_in_bf16_is_told_how_to_go_on_with_the_sums_it_had(tmp_path):
    run_dir = shutil.copytree(FIXTURES / OLD[0], tmp_path / "run")
    words = {}
    for precision in ("bf16", "fp32"):
        save_config(tiny_config("data", training={**TRAINING, "precision": precision}), run_dir)
        words[precision] = shardline("checkpoint", "upgrade", run_dir, "--trust")[1]
        for old in (run_dir / "checkpoints").glob("before-upgrade-*"):
            shutil.rmtree(old.with_name(old.name.removeprefix("before-upgrade-")))
            old.rename(old.with_name(old.name.removeprefix("before-upgrade-")))
    assert ["training.gradient_communication=bf16" in said for said in words.values()] == [True, False]


def test_an_upgrade_that_was_killed_between_its_renames_is_done_again(tmp_path, monkeypatch):
    run_dir = save_config(tiny_config("data"), shutil.copytree(FIXTURES / OLD[0], tmp_path / "run"))
    (old,) = old_checkpoints(run_dir)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(legacy, "put_in_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        upgrade(old)
    assert not old.exists()
    with pytest.raises(
        Mistake, match=f"before-upgrade-{old.name}: the upgrade .* did not come to its end; do it again"
    ):
        choose(run_dir, ALONE)
    assert shardline("checkpoint", "upgrade", run_dir, "--trust")[0] == 0
    assert chosen(run_dir).folder == old


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def poisoned(folder, mark) -> None:
    """Every pickle of a checkpoint replaced by one that leaves a mark, its checksums computed anew."""
    for path in folder.rglob("*.pt"):
        path.write_bytes(pickle.dumps(Evil(mark)))
    sums = {str(path.relative_to(folder)): checksum(path) for path in folder.rglob("*.pt")}
    sums["state.json"] = checksum(folder / "state.json")
    (folder / "checksums.json").write_text(json.dumps(sums))


def test_nothing_but_the_command_with_trust_runs_what_lies_in_a_pickle(dataset, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(FIXTURES / OLD[0], run_dir)
    config = tiny_config(dataset)
    save_config(config.model_copy(update={"runs_dir": str(tmp_path)}), run_dir)
    (old,) = old_checkpoints(run_dir)
    poisoned(old, tmp_path / "PWNED")
    code, words = shardline("checkpoint", "upgrade", run_dir)
    assert code == 2 and "add --trust if these files come from a run of yours" in words
    (tmp_path / "task.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}')
    for command in (
        ["convert", run_dir, "--to", "hf", "--out", tmp_path / "out"],
        ["evaluate", run_dir, "--task", tmp_path / "task.jsonl"],
        ["train", run_dir / "config.yaml"],
    ):
        code, words = shardline(*command)
        assert code == 2 and "shardline checkpoint upgrade" in words, words
    with pytest.raises(ValueError, match="shardline checkpoint upgrade"):
        choose(run_dir, ALONE)
    assert not (tmp_path / "PWNED").exists()


def test_pickles_in_a_checkpoint_of_today_are_never_read(tmp_path):
    folder = save_step(tmp_path, 10)
    (folder / "deepspeed").mkdir()
    for name in ("rng-00000.pt", "deepspeed/mp_rank_00_model_states.pt"):
        (folder / name).write_bytes(pickle.dumps(Evil(tmp_path / "PWNED")))
    assert load_weights(chosen(tmp_path).folder)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("harm", ["flip", "extra", "emptied"])
def test_a_damaged_old_checkpoint_is_not_converted(tmp_path, harm):
    shutil.copytree(FIXTURES / OLD[1], tmp_path / "run")
    (old,) = old_checkpoints(tmp_path / "run")
    file = next(old.rglob("*optim_states.pt"))
    if harm == "flip":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif harm == "extra":
        shutil.copy(file, file.with_name("old-" + file.name))
    else:
        (old / "checksums.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not what was written|does not list it"):
        upgrade(old)
    assert old.is_dir() and not list((tmp_path / "run" / "checkpoints").glob(".tmp*"))


def test_state_on_nvme_is_refused(tmp_path):
    (tmp_path / "offloaded_tensors").mkdir()
    with pytest.raises(ValueError, match="written with offload to NVMe"):
        SavedState(tmp_path, 1, 2)
