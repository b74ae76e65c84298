"""Going on at another number of ranks or ZeRO stage, with real ranks, against runs that nothing happened to."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.training.reshard_ranks import CROSSINGS, FIRST, FIXTURES, LAST, SPREAD, STAGES
from tests.training.runs import REPOSITORY, TIMEOUT
from training.state.choosing import read_index
from training.state.folder import latest_checkpoint
from training.state.loading import load_weights

FP32 = [crossing for crossing in CROSSINGS if "bf16" not in crossing[0]]
PAIRS = [(old, new) for old in STAGES for new in STAGES]


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """Where reshard_ranks.py has run."""
    folder = tmp_path_factory.mktemp("reshard")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.training.reshard_ranks", str(dataset), str(folder)]
    how = {"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": 3 * TIMEOUT}
    done = subprocess.run(command, env=environment, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def losses(folder):
    """Losses of each part of reshard_ranks.py, by crossing."""
    return {
        part: json.loads((folder / f"{part}.json").read_text())
        for part in ("begin", "go_on", "spread", "come_back", "keep")
    }


def state_of(run):
    """Every tensor of every kind of state, and the number of updates."""
    newest = latest_checkpoint(run)
    index = read_index(newest)
    tensors = {(kind, name): value for kind in index.kinds for name, value in load_weights(newest, kind).items()}
    return index.updates, tensors


@pytest.mark.parametrize(
    ("begun", "saved"),
    [(f"begin {old}", f"same {old} {new}") for old, new in [*PAIRS, *CROSSINGS]]
    + [(f"begin {old}", f"four {old} {new}") for old, new in SPREAD],
)
def test_what_other_ranks_at_another_stage_save_as_it_came_is_the_same_to_the_last_bit(folder, begun, saved):
    (updates, state), (again, same) = state_of(folder / begun), state_of(folder / saved)
    assert updates == again == FIRST
    assert list(dict.fromkeys(kind for kind, _ in state)) == ["weight", "exp_avg", "exp_avg_sq"]
    assert all(value.any() for (kind, _), value in state.items() if kind == "exp_avg")
    assert state.keys() == same.keys() and all(torch.equal(value, same[key]) for key, value in state.items())


def test_what_is_replicated_is_written_once_and_by_all(folder):
    parts = sorted(latest_checkpoint(folder / "begin 0").glob("part-*"))
    sizes = [part.stat().st_size for part in parts]
    index = read_index(parts[0].parent)
    elements = sum(box.size for cut in index.cuts for box in cut.boxes)
    assert len(sizes) == 2 and max(sizes) - min(sizes) <= 3 * 4
    assert sum(sizes) == pytest.approx(3 * 4 * elements, rel=0.01)


@pytest.mark.parametrize(("old", "new"), FP32)
def test_one_rank_goes_on_from_two_as_they_would_have(losses, old, new):
    assert losses["go_on"][f"{old} {new}"] == pytest.approx(losses["begin"][old], abs=1e-5)


@pytest.mark.parametrize(("old", "new"), SPREAD)
def test_four_ranks_go_on_from_two_as_they_would_have(losses, old, new):
    close = 3e-3 if "bf16" in old else 1e-5
    assert losses["spread"][f"{old} {new}"] == pytest.approx(losses["begin"][old], abs=close)


def test_bf16_goes_on_as_closely_as_bf16_can(losses):
    assert losses["go_on"]["1 bf16 1 bf16"] == pytest.approx(losses["begin"]["1 bf16"], abs=3e-3)


def test_without_the_moments_the_losses_would_be_others(losses):
    lost, whole = losses["go_on"]["without moments"], losses["begin"]["1"]
    assert max(abs(a - b) for a, b in zip(lost, whole, strict=True)) > 0.05


@pytest.mark.parametrize(
    ("saved", "old"), [(f"same {o} {n}", o) for o, n in CROSSINGS] + [(f"four {o} {n}", o) for o, n in SPREAD]
)
def test_two_ranks_go_on_from_what_came_back_to_them_bit_for_bit(losses, saved, old):
    assert losses["come_back"][saved] == losses["begin"][old]


@pytest.mark.parametrize("way", ["1", "3"])
def test_two_ranks_go_on_from_what_one_rank_trained(losses, way):
    back = losses["come_back"][f"later {way} {way}"]
    assert 0 < len(back) < LAST - FIRST
    assert back == pytest.approx(losses["begin"][way][-len(back) :], abs=1e-5)


def test_parameters_that_a_changed_deepspeed_key_puts_in_another_order_find_their_state(losses):
    assert losses["come_back"]["other order"] == pytest.approx(losses["begin"]["2"], abs=1e-5)


@pytest.mark.parametrize("written_by", ["same ranks", "other ranks"])
def test_a_changed_config_counts_whoever_wrote_the_checkpoint(losses, written_by):
    assert losses["come_back"][written_by] == {"weight_decay": [0.5, 0.0], "clipping": 9}


@pytest.mark.parametrize("fixture", sorted(path.name for path in FIXTURES.iterdir()))
def test_a_checkpoint_of_an_earlier_version_goes_on_as_that_version_would_have(folder, losses, fixture):
    expected = json.loads((FIXTURES / fixture / "losses.json").read_text())
    assert losses["keep"][fixture] == pytest.approx(expected, abs=1e-4)
    weights, ours = (
        load_file(FIXTURES / fixture / "weights.safetensors"),
        load_weights(latest_checkpoint(folder / fixture)),
    )
    assert weights.keys() - ours.keys() <= {"head.weight"} and ours.keys() <= weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in ours.items())
    kept = [path.name for path in (folder / fixture / "checkpoints").glob("before-upgrade-*")]
    assert kept == (["before-upgrade-step-00000003"] if "pickles" in fixture else [])
