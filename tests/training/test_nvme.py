"""State on a disk: real ranks against a plain loop, and their checkpoints against those of ranks that use memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.mistakes import Mistake
from data_pipeline.manifest import Manifest
from tests.training.nvme_ranks import CROSSINGS, FIRST, LAST, LR, WAYS, config_of
from tests.training.runs import REPOSITORY, tiny_config, torchrun
from training.deepspeed_config import deepspeed_config
from training.state.folder import latest_checkpoint
from training.state.index import WEIGHT
from training.state.loading import load_weights
from training.swap_folder import PREFIX, SwapFolder
from training.verify.compare import SAME, compare
from training.verify.plain import MOMENTS, History, train_plainly
from training.verify.small import small

KINDS = (WEIGHT, *MOMENTS)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory) -> Path:
    """What two ranks wrote."""
    folder = tmp_path_factory.mktemp("nvme")
    (folder / "disk").mkdir()
    done = torchrun(2, "-m", "tests.training.nvme_ranks", str(dataset), str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def state_of(run: Path) -> dict:
    found = {kind: load_weights(latest_checkpoint(run), kind) for kind in KINDS}
    return {(kind, name): value for kind, of in found.items() for name, value in of.items()}


def same(a: Path, b: Path) -> bool:
    mine, theirs = state_of(a), state_of(b)
    assert any(value.any() for (kind, _), value in mine.items() if kind != WEIGHT)
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in mine.items())


def steps_of(folder: Path, way: str) -> dict:
    found = {step: state_of(folder / f"{way} {step}") for step in range(1, LAST + 1)}
    return {
        step: {kind: {name: value for (of, name), value in state.items() if of == kind} for kind in KINDS}
        for step, state in found.items()
    }


@pytest.mark.parametrize("way", WAYS)
def test_training_from_a_disk_follows_the_plain_loop_and_takes_up_where_it_left_off(folder, dataset, way):
    results = json.loads((folder / "results.json").read_text())[way]
    torch.set_num_threads(2)
    losses, norms = map(list, zip(*results["lines"], strict=True))
    states = steps_of(folder, way)
    config = config_of(dataset, way, folder / "disk")
    plain = train_plainly(config, Manifest.load(dataset), num_ranks=2, steps=LAST, lr=LR, given=states)
    found = compare(History(losses, norms, states), plain, SAME)
    assert all(each.holds for each in found), found
    assert results["last"][way] == losses[-1]
    assert same(folder / f"{way} {FIRST}", folder / f"same {way} {way}")
    assert same(folder / f"{way} {LAST}", folder / f"last {way} {way}")


def test_the_state_was_on_the_disk_and_is_gone(folder):
    results = json.loads((folder / "results.json").read_text())
    for way, (_, zero, _) in WAYS.items():
        files = " ".join(results[way]["files"])
        assert ("exp_avg_sq" in files) == ("offload_optimizer" in zero), way
        assert ("param.tensor" in files) == ("offload_param" in zero), way
        assert results[way]["left"] == 0
    assert not list((folder / "disk").iterdir())


@pytest.mark.parametrize(("old", "new"), CROSSINGS)
def test_a_checkpoint_goes_from_disk_to_memory_and_back_bit_for_bit(folder, old, new):
    assert same(folder / f"{old} {FIRST}", folder / f"same {old} {new}")
    results = json.loads((folder / "results.json").read_text())[old]
    assert results["last"][new] == pytest.approx(results["lines"][-1][0], abs=1e-6)


OPTIMIZER = {"device": "nvme", "nvme_path": "/disk"}


@pytest.mark.parametrize(
    ("stage", "keys", "words"),
    [
        (
            2,
            {"offload_optimizer": OPTIMIZER},
            "device: nvme is for training.zero_stage 3, at 2 DeepSpeed would use host",
        ),
        (3, {"offload_optimizer": {"device": "nvme"}}, "nvme_path: None; expected the absolute path of a folder"),
        (
            3,
            {"offload_param": OPTIMIZER | {"nvme_path": "disk"}},
            "offload_param.nvme_path: 'disk'; expected the absol",
        ),
        (
            3,
            {"offload_optimizer": OPTIMIZER | {"buffer_count": 3}},
            "3 buffers are too few for 4 vectors of each of th",
        ),
        (3, {"offload_optimizer": OPTIMIZER | {"pipeline_read": True}}, "of the 2 parts in work; set it to 8 or more"),
        (
            3,
            {"offload_optimizer": OPTIMIZER | {"fast_init": True}},
            "fast_init: not taken, master weights get their first",
        ),
        (3, {"offload_optimizer": OPTIMIZER | {"ratio": 0.5}}, "ratio: not taken, it leaves a part of the state on"),
        (3, {"offload_optimizer": OPTIMIZER | {"buffer_count": "4"}}, "buffer_count: found '4'; expected a whole numb"),
        (
            3,
            {"offload_optimizer": {"device": "cpu", "buffer_count": 4}},
            "buffer_count: it is about NVMe and device is",
        ),
        (
            3,
            {"offload_param": OPTIMIZER, "stage3_prefetch_bucket_size": 9},
            "prefetch_bucket_size: 9; with weights on N",
        ),
        (3, {"offload_param": {"device": "cpu", "ratio": 1.0}}, "offload_param.ratio: not taken, it leaves a part"),
        (3, {"offload_param": {"device": "cpu", "path": "x"}}, "path: not taken, known are device, pin_memory, nvme_p"),
    ],
)
def test_what_a_disk_cannot_be_asked_for_is_refused_by_name(stage, keys, words):
    training = {"zero_stage": stage, "deepspeed": {"zero_optimization": keys}}
    with pytest.raises(Mistake) as caught:
        deepspeed_config(tiny_config("data", training=training), 2, "cpu")
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("aio", "words"),
    [
        ({"queue_depth": 0}, "training.deepspeed.aio.queue_depth: 0; expected 1 or more"),
        ({"block_size": 1000}, "training.deepspeed.aio.block_size: 1000 bytes; expected a multiple of 4096"),
        ({"use_gds": True}, "training.deepspeed.aio.use_gds: not taken, it takes files past the host's memory"),
        ({"depth": 1}, "training.deepspeed.aio.depth: not taken, known are block_size"),
    ],
)
def test_keys_of_aio_are_checked_and_refused_where_nothing_is_swapped(aio, words):
    swapped = {"zero_stage": 3, "deepspeed": {"aio": aio, "zero_optimization": {"offload_optimizer": OPTIMIZER}}}
    with pytest.raises(Mistake, match=words):
        deepspeed_config(tiny_config("data", training=swapped), 2, "cpu")
    with pytest.raises(Mistake, match=r"training\.deepspeed\.aio: it is about NVMe and nothing is offloaded there"):
        training = {"zero_stage": 3, "deepspeed": {"aio": {"queue_depth": 4}}}
        deepspeed_config(tiny_config("data", training=training), 2, "cpu")


def test_a_run_made_small_is_still_large_enough_to_be_swapped(tmp_path):
    keys = {"zero_optimization": {"offload_optimizer": OPTIMIZER}}
    config = tiny_config("data", training={"zero_stage": 3, "deepspeed": keys})
    assert small(config, tmp_path, 2).model.d_model == 8 * small(tiny_config("data"), tmp_path, 2).model.d_model


def test_a_folder_for_swapping_is_its_process_s_own_and_goes_with_it(tmp_path):
    mine, other = SwapFolder(tmp_path, "key"), SwapFolder(tmp_path, "key")
    assert mine.path != other.path and mine.path.parent == tmp_path and mine.path.name.startswith(PREFIX)
    code = f"from pathlib import Path; import os, training.swap_folder as s; s.SwapFolder(Path({str(tmp_path)!r}), 'k')"
    words = [sys.executable, "-c", f"{code}; os.kill(os.getpid(), 9)"]
    assert subprocess.run(words, cwd=REPOSITORY, check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 3
    third = SwapFolder(tmp_path, "key")
    assert {each.path for each in (mine, other, third)} == set(tmp_path.iterdir()), "what was left is gone, no other"
    for each in (mine, other, third):
        each.remove()
        each.remove()
    assert not list(tmp_path.iterdir())
    with pytest.raises(Mistake, match=r"key: .*nowhere is no folder on this node"):
        SwapFolder(tmp_path / "nowhere", "key")
