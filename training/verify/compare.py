"""How far the engine is from the plain loop, and how far it may be.

The limits are those of rounding in another order. A micro-batch counted twice, one that leaks a hundredth of itself
into the next step, a norm that counts something twice or a sum in bf16 lie ten times outside them and more.
"""

import dataclasses
import math
from collections.abc import Mapping

import torch

from data_pipeline.manifest import Manifest
from model.network.transformer import Transformer
from training.config import RunConfig
from training.state.index import WEIGHT
from training.step import LossModel, Patterns
from training.verify.plain import History, loader_of
from training.verify.small import LR


@dataclasses.dataclass(frozen=True)
class Limits:
    """Largest differences that rounding explains."""

    loss: float
    """Of a loss, in nats per target."""
    norm: float
    """Of a gradient norm, as a share of it."""
    moment: float
    """Of a moment, as a share of the largest number in it."""
    update: float
    """Of a weight, in learning rates."""


SAME = Limits(loss=1e-6, norm=5e-6, moment=1e-5, update=2e-3)
"""Sums of the same numbers in another order."""
ON_GPU = Limits(loss=1e-5, norm=5e-5, moment=1e-4, update=2e-2)
"""Where a product's order may depend on how its memory is cut."""
ROUNDED = Limits(loss=1e-6, norm=5e-3, moment=2e-2, update=2.0)
"""Gradients rounded to bf16 between ranks, 8 bits of each. Where they nearly cancel, a sum may round to the other side
of zero, and AdamW then moves the weight the other way: moments tell, updates do not."""
SHARED = Limits(loss=1e-6, norm=5e-6, moment=1e-5, update=2e-2)
"""Layers shared by ranks in fp32: products are summed in parts, and where a gradient nearly cancels AdamW divides by as
little, so that its update tells less."""
SHARED_ROUNDED = Limits(loss=1e-4, norm=5e-3, moment=5e-2, update=2.2)
"""The same in bf16, where each part of a sum is rounded before they are added."""
MUON_ROUNDED = 0.1
"""Of a weight, in learning rates, where Muon orthogonalises in bf16: a gradient's last bit is seen in many elements."""
KERNEL = {"fp32": (1e-5, 1e-4), "bf16": (3e-2, 0.15)}
"""By precision: of a loss, in nats per target; of a gradient, as a share of its norm; against all in fp64."""


KINDS = {"exp_avg": "first moment", "exp_avg_sq": "second moment", WEIGHT: "weight, in learning rates"}
"""What is compared of every parameter, in words."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing compared."""

    what: str
    """What, in words."""
    worst: float
    """The largest difference found; NaN counts as one."""
    allowed: float
    """The limit."""
    where: str
    """Where it was found."""

    @property
    def holds(self) -> bool:
        """Whether it is within the limit."""
        return self.worst <= self.allowed


def limits_of(config: RunConfig, device_type: str) -> Limits:
    """What a step of a run may differ by."""
    limits = _limits_of_adamw(config, device_type)
    if config.optimizer.name == "muon" and config.training.precision == "bf16":
        return dataclasses.replace(limits, update=max(limits.update, MUON_ROUNDED))
    return limits


def _limits_of_adamw(config: RunConfig, device_type: str) -> Limits:
    shared = config.parallel.num_sharing > 1
    if shared and config.training.precision == "bf16":
        return SHARED_ROUNDED
    if config.training.gradient_communication == "bf16":
        return ROUNDED
    if shared and device_type == "cpu":
        return SHARED
    return ON_GPU if device_type == "cuda" else SAME


def compare(ours: History, plain: History, limits: Limits) -> list[Finding]:
    """Losses, norms, and for every parameter both moments and the weights, after each step; the worst of each."""
    assert ours.states.keys() == plain.states.keys(), (ours.states.keys(), plain.states.keys())
    losses = {f"step {step}": abs(a - b) for step, (a, b) in enumerate(zip(ours.losses, plain.losses, strict=True), 1)}
    norms = {
        f"step {step}": _share(a - b, b) for step, (a, b) in enumerate(zip(ours.norms, plain.norms, strict=True), 1)
    }
    found = [_worst("loss", losses, limits.loss), _worst("gradient norm", norms, limits.norm)]
    for kind, words in KINDS.items():
        apart: dict[str, float] = {}
        for step, state in plain.states.items():
            mine, theirs = ours.states[step][kind], state[kind]
            assert mine.keys() == theirs.keys(), sorted(mine.keys() ^ theirs.keys())
            for name in theirs:
                difference = _largest(mine[name] - theirs[name])
                share = difference / LR if kind == WEIGHT else _share(difference, _largest(theirs[name]))
                apart[f"step {step}, {name}"] = share
        found.append(_worst(words, apart, limits.update if kind == WEIGHT else limits.moment))
    return found


def compare_kernels(config: RunConfig, manifest: Manifest, device: torch.device | str) -> list[Finding]:
    """The network as the config runs it, with its attention kernel, against the reference kernel in fp64."""
    precision = config.training.precision
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    vocab_size = config.model.vocab_size or manifest.vocab_size
    model = Transformer(config.model, vocab_size, config.seed).to(device=device, dtype=dtype)
    exact = Transformer(config.model.run_plainly(attention_backend="reference"), vocab_size, config.seed)
    exact.load_state_dict(model.state_dict())
    with loader_of(config, manifest, 0, 1) as loader:
        batch = next(loader)[0]
    batch, pattern = batch.to(device), Patterns.of(batch).to(device)
    losses, gradients = [], []
    for network in (model, exact.to(device=device, dtype=torch.float64)):
        with_loss = LossModel(network, config.training.z_loss, config.training.further_weight)
        loss, entropies = with_loss(batch, pattern)
        weights = dict(network.named_parameters())
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        losses.append(float(entropies[0]) / batch.num_targets)
        gradients.append({name: each.double().cpu() for name, each in zip(weights, found, strict=True)})
    ours, theirs = gradients
    apart = {name: _share(float((ours[name] - theirs[name]).norm()), float(theirs[name].norm())) for name in theirs}
    of_loss, of_gradient = KERNEL[precision]
    return [
        _worst("loss against fp64", {"first batch": abs(losses[0] - losses[1])}, of_loss),
        _worst("gradients against fp64", apart, of_gradient),
    ]


def _worst(what: str, apart: Mapping[str, float], allowed: float) -> Finding:
    where = max(apart, key=lambda name: math.inf if math.isnan(apart[name]) else apart[name])
    worst = apart[where]
    return Finding(what, math.inf if math.isnan(worst) else worst, allowed, where)


def _share(difference: float, of: float) -> float:
    if difference == 0:
        return 0.0
    return abs(difference / of) if of else math.inf


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max())
