"""Layers and rows that ranks share, on four real ranks: against ranks that share none, and megatron-core itself."""

import json

import pytest
import torch

from tests.training.runs import torchrun
from tests.training.tensor_ranks import CROSSINGS, FAULTS, LONG, SAVED, WAYS
from training.state.folder import latest_checkpoint
from training.state.loading import load_weights

GONE_ON = [(name, f"{name} to {to}") for name, (_, others) in CROSSINGS.items() for to in others]


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """What tensor_ranks.py wrote."""
    folder = tmp_path_factory.mktemp("tensor")
    done = torchrun(4, "-m", "tests.training.tensor_ranks", str(dataset), str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("sequence", [False, True])
def test_cut_layers_and_loss_are_those_of_megatron_core(results, sequence):
    apart = results[f"megatron {sequence}"]
    assert len(apart) == 7 and max(apart.values()) < 2e-6, apart


@pytest.mark.parametrize("way", WAYS)
def test_steps_are_those_of_ranks_that_share_nothing(results, way):
    found, expected = (torch.tensor(results[name]) for name in (way, WAYS[way][0]))
    assert len(found) == (20 if way in LONG else 6)
    expected = expected[: len(found)]
    assert (found - expected).abs().max() < 1e-5, (found - expected).abs().amax(0)
    assert way not in LONG or expected[0, 0] - expected[-1, 0] > 0.2, "it learns"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows_in_losses_or_norms(results, fault):
    found, expected = torch.tensor(results[fault]), torch.tensor(results["prefix"][:2])
    assert (found - expected).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "way"), GONE_ON)
def test_a_run_goes_on_under_another_layout_as_it_would_have(results, name, way):
    assert torch.tensor(results[way]) == pytest.approx(torch.tensor(results[name][SAVED:]), abs=1e-5)


def test_the_same_layout_goes_on_bit_for_bit(results):
    for name in ("from layers", "from both"):
        assert results[f"{name} to itself"] == results[name][SAVED:]


@pytest.mark.parametrize(("name", "way"), GONE_ON)
@pytest.mark.parametrize("kind", ["weight", "exp_avg", "exp_avg_sq"])
def test_what_another_layout_saves_as_it_came_is_the_same_to_the_last_bit(folder, name, way, kind):
    state, same = (load_weights(latest_checkpoint(folder / run), kind) for run in (name, way))
    assert state.keys() == same.keys() and all(torch.equal(value, same[key]) for key, value in state.items())
