"""Which parameters are changed by what, and which of them decay.

Matrices decay, embeddings among them (GPT-3 and Llama do so); what has one dim (norm weights, biases) does not,
because pulling a gain or an offset to zero regularises nothing.
"""

from collections.abc import Iterable

import torch
from torch import nn

from model.network.layers import hidden_matrices
from training.config import RunConfig
from training.muon import Muon

MOMENTUM = 0.95
"""Of Muon, where the config does not say."""


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Splits named parameters into a group that decays (two dims and more) and one that does not.

    Frozen parameters are left out, a tied one counts once, and a group without parameters is not made.
    """
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    seen: set[int] = set()
    for _, parameter in parameters:
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            (decay if parameter.ndim >= 2 else plain).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, run: RunConfig, device: torch.device) -> torch.optim.Optimizer:
    """The run's optimizer over the model's parameters; AdamW is one fused kernel where torch has one for the device."""
    config, named = run.optimizer, dict(model.named_parameters())
    fused = device.type in ("cpu", "cuda")
    hidden = hidden_matrices(model) if config.name == "muon" else {}
    groups = decay_groups([(name, weight) for name, weight in named.items() if name not in hidden], config.weight_decay)
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    if config.name == "adamw":
        return adamw
    momentum = MOMENTUM if config.momentum is None else config.momentum
    dtype = torch.bfloat16 if run.training.precision == "bf16" else torch.float32
    return Muon(
        adamw,
        [named[name] for name in hidden],
        lr=config.lr,
        momentum=momentum,
        weight_decay=config.weight_decay,
        dtype=dtype,
    )
