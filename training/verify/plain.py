"""A training loop that never heard of ranks, ZeRO or DeepSpeed: what the engine must come to, number by number.

One process takes the micro-batches of all ranks one after another. It keeps fp32 weights and moments, computes in what
the config says, adds gradients up in fp32 and rounds where the engine has to. It shares the network and the packed
batches with the engine; those are held against Hugging Face and against plain Python elsewhere.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from data_pipeline.manifest import Manifest
from data_pipeline.reading.batches import Reading
from data_pipeline.reading.loader import Loader
from model.network.layers import hidden_matrices
from model.network.transformer import Transformer
from training.config import RunConfig
from training.optimizer import decay_groups
from training.state.index import WEIGHT
from training.step import LossModel, Patterns
from training.verify.plain_muon import Direction, PlainMuon

MOMENTS = ("exp_avg", "exp_avg_sq")


State = Mapping[str, Mapping[str, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class History:
    """What training came to."""

    losses: list[float]
    """Cross-entropy of each step, in nats per target."""
    norms: list[float]
    """Norm of each step's gradient before clipping."""
    states: Mapping[int, State]
    """fp32 weights and both moments after each step, by step, kind and name, on the host."""


class Sum:
    """How gradients are added up; the ways to do it wrong inherit from it."""

    dtype = torch.float32

    def of_rank(self, gradients: Sequence[torch.Tensor], rank: int) -> torch.Tensor:
        """Sum over the micro-batches of a rank, as the others get it."""
        total = gradients[0].to(self.dtype, copy=True)
        for gradient in gradients[1:]:
            total += gradient.to(self.dtype)
        return self.sent(total)

    def sent(self, total: torch.Tensor) -> torch.Tensor:
        """A rank's sum as the others get it."""
        return total

    def norm(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Norm of the whole gradient."""
        return torch.stack([gradient.norm() for gradient in gradients]).norm()


class Rounded(Sum):
    """Each rank's sum is rounded to bf16 on its way, as `gradient_communication: bf16` asks for."""

    def sent(self, total: torch.Tensor) -> torch.Tensor:
        """A rank's sum as the others get it."""
        return total.bfloat16().float()


def loader_of(config: RunConfig, manifest: Manifest, rank: int, num_ranks: int) -> Loader:
    """The micro-batches of one rank."""
    training = config.training
    reading = Reading(
        config.data.path,
        manifest,
        config.objective,
        config.model.shape,
        training.sequence_length,
        training.micro_batch_size,
        config.seed,
        rank=rank,
        world_size=num_ranks,
        target_length=training.target_length,
        packing=config.data.packing,
    )
    return Loader(reading, global_batch_size=training.global_batch_size, prefetch=0)


def train_plainly(
    config: RunConfig,
    manifest: Manifest,
    *,
    num_ranks: int,
    steps: int,
    lr: float,
    device: torch.device | str = "cpu",
    addition: Sum | None = None,
    direction: Direction | None = None,
    given: Mapping[int, State] | None = None,
) -> History:
    """Trains `steps` steps on the global batches that so many ranks would share; `direction` is Muon's, if it is used.

    Where states are given, by the step after which they were, every later step begins with the one before it: so each
    step is compared by itself, and a number that rounds to another side is not carried on.
    """
    addition = addition or (Rounded() if config.training.gradient_communication == "bf16" else Sum())
    transformer = Transformer(config.model, config.model.vocab_size or manifest.vocab_size, config.seed)
    masters = {
        name: nn.Parameter(weight.detach().to(device).clone()) for name, weight in transformer.named_parameters()
    }
    if config.training.precision == "bf16":
        transformer.bfloat16()
    transformer.to(device)
    model = LossModel(transformer, config.training.z_loss, config.training.further_weight)
    weights = dict(transformer.named_parameters())
    optimizer = _optimizer(config, transformer, masters, lr, direction or Direction())
    losses, norms, states = [], [], {}
    loaders = [loader_of(config, manifest, rank, num_ranks) for rank in range(num_ranks)]
    for step in range(1, steps + 1):
        if given and step > 1:
            _take_over(given[step - 1], masters, weights, optimizer)
        ranks = [next(loader) for loader in loaders]
        num_targets = sum(batch.num_targets for batches in ranks for batch in batches)
        sums: dict[str, torch.Tensor] = {}
        total = 0.0
        for rank, batches in enumerate(ranks):
            gradients: dict[str, list[torch.Tensor]] = {name: [] for name in weights}
            for batch in batches:
                loss, entropies = model(batch.to(device), Patterns.of(batch).to(device))
                (loss * (num_ranks / num_targets)).backward()
                total += float(entropies[0]) / num_targets
                for name, weight in weights.items():
                    gradients[name].append(torch.zeros_like(weight) if weight.grad is None else weight.grad)
                    weight.grad = None
            for name, mine in gradients.items():
                of_rank = addition.of_rank(mine, rank)
                sums[name] = sums[name].add_(of_rank) if rank else of_rank
        for name, master in masters.items():
            master.grad = (sums[name] / num_ranks).float()
        norm = float(addition.norm([master.grad for master in masters.values() if master.grad is not None]))
        _clip(masters, norm, config.optimizer.gradient_clipping)
        optimizer.step()
        _round(masters, weights)
        losses.append(total)
        norms.append(norm)
        states[step] = _state(masters, optimizer)
    for loader in loaders:
        loader.close()
    return History(losses, norms, states)


def _optimizer(
    config: RunConfig, model: nn.Module, masters: Mapping[str, nn.Parameter], lr: float, direction: Direction
) -> torch.optim.AdamW | PlainMuon:
    keys = config.optimizer
    hidden = hidden_matrices(model) if keys.name == "muon" else {}
    rest = [(name, master) for name, master in masters.items() if name not in hidden]
    groups = decay_groups(rest, keys.weight_decay)
    adamw = torch.optim.AdamW(groups, lr=lr, betas=keys.betas, eps=keys.eps, fused=True)
    if keys.name == "adamw":
        return adamw
    return PlainMuon(
        adamw,
        [(masters[name], division) for name, division in hidden.items()],
        lr=lr,
        momentum=0.95 if keys.momentum is None else keys.momentum,
        weight_decay=keys.weight_decay,
        dtype=torch.bfloat16 if config.training.precision == "bf16" else torch.float32,
        direction=direction,
    )


def _clip(masters: Mapping[str, nn.Parameter], norm: float, limit: float) -> None:
    for master in masters.values():
        if limit and master.grad is not None:
            master.grad *= min(1.0, limit / (norm + 1e-6))


@torch.no_grad()
def _round(masters: Mapping[str, nn.Parameter], weights: Mapping[str, nn.Parameter]) -> None:
    for name, weight in weights.items():
        weight.copy_(masters[name])


@torch.no_grad()
def _take_over(
    state: State,
    masters: Mapping[str, nn.Parameter],
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.AdamW | PlainMuon,
) -> None:
    for name, master in masters.items():
        master.copy_(state[WEIGHT][name])
        for kind in MOMENTS:
            if kind in optimizer.state[master]:
                optimizer.state[master][kind].copy_(state[kind][name])
    _round(masters, weights)


def _state(
    masters: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW | PlainMuon
) -> dict[str, dict[str, torch.Tensor]]:
    state = {WEIGHT: {name: master.detach().cpu().clone() for name, master in masters.items()}}
    for kind in MOMENTS:
        kept = {name: optimizer.state[master] for name, master in masters.items()}
        state[kind] = {name: of[kind].cpu().clone() for name, of in kept.items() if kind in of}
    return state
