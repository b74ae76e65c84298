"""ZeRO on two ranks against a plain loop in one process that keeps fp32 weights and rounds at the same points."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.manifest import Manifest
from tests.training.parity_ranks import LR, STEPS, Way, exact_ways, measured_ways, rounded_ways
from tests.training.planted import LastLeaks, LastTwice, Narrow, NormOfAPart
from tests.training.runs import torchrun
from training.state.index import WEIGHT
from training.verify.plain import Rounded, Sum, train_plainly

LOSS, NORM, LAST_WEIGHT = 1e-6, 1e-6, 2e-6
"""Largest differences allowed: of a loss, of a gradient norm as a share of it, of a weight after the last step."""


@dataclasses.dataclass(frozen=True)
class History:
    """What training came to."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]

    def distance(self, other: "History") -> float:
        """Largest difference to another, in units of what is allowed: 1 is the limit."""
        losses = [abs(a - b) / LOSS for a, b in zip(self.losses, other.losses, strict=True)]
        norms = [abs(a / b - 1) / NORM for a, b in zip(self.norms, other.norms, strict=True)]
        weights = [float((self.weights[name] - other.weights[name]).abs().max()) / LAST_WEIGHT for name in self.weights]
        return max(*losses, *norms, *weights)


def plain_loop(way: Way, data: Path, addition: Sum | None = None) -> History:
    """The plain loop on the same global batches."""
    torch.set_num_threads(1)
    config, manifest = way.config(data), Manifest.load(data)
    came_to = train_plainly(config, manifest, num_ranks=2, steps=STEPS, lr=LR, addition=addition or Sum())
    return History(came_to.losses, came_to.norms, dict(came_to.states[STEPS][WEIGHT]))


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory) -> Path:
    """What two ranks wrote."""
    folder = tmp_path_factory.mktemp("parity")
    done = torchrun(2, "-m", "tests.training.parity_ranks", str(dataset), str(folder), timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def results(folder) -> dict:
    """The facts among it."""
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def histories(folder, results) -> Callable[[Way], History]:
    """What came of a way on two ranks."""
    tensors = load_file(folder / "weights.safetensors")

    def history(way: Way) -> History:
        losses, norms = zip(*results["ways"][str(way)]["lines"], strict=True)
        prefix = f"{way}/"
        weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        return History(list(losses), list(norms), weights)

    return history


@pytest.fixture(scope="module")
def plain(dataset) -> Callable[[Way], History]:
    """The plain loop for a way; many ways share one."""
    known: dict[tuple, History] = {}

    def history(way: Way) -> History:
        key = way.precision, way.accumulation, way.clipping
        if key not in known:
            known[key] = plain_loop(way, dataset)
        return known[key]

    return history


@pytest.mark.parametrize("way", exact_ways(), ids=str)
def test_every_way_to_train_follows_the_plain_loop(histories, plain, way):
    expected = plain(way)
    if way.stage and not way.shows_masters:
        rounded = {name: weight.bfloat16().float() for name, weight in expected.weights.items()}
        expected = dataclasses.replace(expected, weights=rounded)
    assert histories(way).distance(expected) < 1


@pytest.mark.parametrize("way", rounded_ways(), ids=str)
def test_gradients_sent_in_bf16_stay_near_it_but_are_told_apart(histories, plain, way):
    ours, theirs = histories(way), plain(way)
    assert ours.distance(theirs) > 10
    assert max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)) < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fault", [LastTwice, LastLeaks, NormOfAPart, Narrow, Rounded])
def test_the_limits_are_so_narrow_that_a_fault_is_far_outside(plain, dataset, precision, fault):
    way = Way(2, precision, 4, 0.05)
    assert plain_loop(way, dataset, fault()).distance(plain(way)) > 10


def test_the_gradient_is_clipped_on_the_way(plain):
    assert min(plain(Way(2, "bf16", 4, 0.05)).norms) > 0.05


@pytest.mark.parametrize("way", [*exact_ways(), *rounded_ways()], ids=str)
def test_gradients_cross_ranks_in_what_the_config_says(results, way):
    said = {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[way.communication]
    weights = {"torch.bfloat16"} if "all_reduce_for_fetch" in way.keys else set()  # they travel by sums too then
    assert set(results["ways"][str(way)]["reduced"]) == {said} | weights


OPTIMIZERS = ("AdamW", "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3")


@pytest.mark.parametrize("way", exact_ways(), ids=str)
def test_the_stage_alone_decides_what_kind_of_optimizer_there_is(results, way):
    assert results["ways"][str(way)]["optimizer"] == OPTIMIZERS[way.stage]


@pytest.mark.parametrize("way", measured_ways(), ids=str)
def test_a_rank_holds_what_it_says_it_holds(results, way):
    held = results["held"][str(way)]
    said = sum(held[name] for name in ("weights", "gradients", "master_weights", "moments"))
    of_batches = 10_000
    assert said <= held["live"] < said + of_batches
