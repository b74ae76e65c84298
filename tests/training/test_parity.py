"""ZeRO on two ranks against a plain loop in one process that keeps fp32 weights and rounds at the same points."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from model.kernels.attention import AttentionPattern
from model.network.transformer import Transformer
from tests.training.parity_ranks import LR, STEPS, Way, exact_ways, measured_ways, rounded_ways
from tests.training.runs import VOCAB_SIZE, torchrun
from tests.training.step_ranks import batches_of

LOSS, NORM, WEIGHT = 1e-6, 1e-6, 2e-6
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
        weights = [float((self.weights[name] - other.weights[name]).abs().max()) / WEIGHT for name in self.weights]
        return max(*losses, *norms, *weights)


class Sum:
    """How a plain loop adds up gradients; the ways to do it wrong inherit from it."""

    dtype = torch.float32

    def of(self, gradients: list[list[torch.Tensor]]) -> torch.Tensor:
        """Mean over the ranks of the sums over their micro-batches, fp32, from one gradient by rank and micro-batch."""
        sums = []
        for of_rank in gradients:
            total = of_rank[0].to(self.dtype, copy=True)
            for gradient in of_rank[1:]:
                total += gradient.to(self.dtype)
            sums.append(total)
        return ((sums[0] + sums[1]) / 2).float()

    def norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        """Norm of the whole gradient."""
        return torch.stack([gradient.norm() for gradient in gradients]).norm()


class LastTwice(Sum):
    """The last micro-batch counts twice."""

    def of(self, gradients):
        return super().of([[*of_rank, of_rank[-1]] for of_rank in gradients])


class LastLeaks(Sum):
    """The last micro-batch of a rank stays and is added to the next step."""

    def __init__(self):
        self.left: dict[torch.Size, torch.Tensor] = {}

    def of(self, gradients):
        (*_, last), shape = gradients[0], gradients[0][0].shape
        stale = self.left.get(shape, torch.zeros_like(last))
        self.left[shape] = last / 100
        return super().of([[*gradients[0], stale], gradients[1]])


class NormOfAPart(Sum):
    """Every rank's part of the norm is counted twice."""

    def norm(self, gradients):
        return super().norm(gradients) * 2**0.5


class Narrow(Sum):
    """Micro-batches are added up in bf16."""

    dtype = torch.bfloat16


class RoundedBetweenRanks(Sum):
    """Each rank's sum is rounded to bf16 on its way."""

    def of(self, gradients):
        return super().of([[super(RoundedBetweenRanks, self).of([g, g]).bfloat16().float()] for g in gradients])


def plain_loop(way: Way, data: Path, addition: Sum | None = None) -> History:
    """A hand-written loop that never heard of ranks, on the same global batches."""
    torch.set_num_threads(1)
    addition = addition or Sum()
    config = way.config(data)
    model = Transformer(config.model, VOCAB_SIZE, config.seed)
    masters = {name: nn.Parameter(weight.detach().clone()) for name, weight in model.named_parameters()}
    if way.precision == "bf16":
        model.bfloat16()
    weights = dict(model.named_parameters())
    groups: list[dict] = [
        {"params": [master for master in masters.values() if master.ndim == dims], "weight_decay": decay}
        for dims, decay in ((2, 0.1), (1, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8, fused=True)
    losses, norms = [], []
    loaders = [batches_of(config, rank, 2) for rank in range(2)]
    for _ in range(STEPS):
        ranks = [next(loader) for loader in loaders]
        num_targets = sum(batch.num_targets for batches in ranks for batch in batches)
        gradients: dict[str, list[list[torch.Tensor]]] = {name: [[], []] for name in weights}
        loss = 0.0
        for rank, batches in enumerate(ranks):
            for batch in batches:
                pattern = AttentionPattern.packed(batch.cu_seqlens, batch.prefix_lengths)
                output = model(batch.tokens, batch.positions, pattern, batch.labels)
                (output.loss_sum * (2 / num_targets)).backward()
                loss += output.cross_entropy_sum.item() / num_targets
                for name, weight in weights.items():
                    gradients[name][rank].append(weight.grad)
                    weight.grad = None
        for name, master in masters.items():
            master.grad = addition.of(gradients[name])
        norm = addition.norm([master.grad for master in masters.values()])
        for master in masters.values():
            master.grad *= min(1.0, way.clipping / (norm.item() + 1e-6)) if way.clipping else 1.0
        optimizer.step()
        for name, weight in weights.items():
            weight.data.copy_(masters[name].data)
        losses.append(loss)
        norms.append(norm.item())
    for loader in loaders:
        loader.close()
    return History(losses, norms, {name: master.detach() for name, master in masters.items()})


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
@pytest.mark.parametrize("fault", [LastTwice, LastLeaks, NormOfAPart, Narrow, RoundedBetweenRanks])
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
