"""Bytes of memory of one rank's device while a run trains on it, part by part, at the moments when it holds most.

    from step to step       weights, master weights, moments; at stage 3 gradients: as ZeRO cuts them between R replicas
    at the loss             + gradients of the micro-batches before, what blocks and ends have left, a chunk of logits
    in the backward pass    + the same without logits, a block that is computed again, gradients on their way, buckets
    at its first reduction  + the part of gradients that a replica sums, where it is made then
    when it is over         + all gradients and none of what was left
    in the optimizer        + gradients made flat, and one of them in fp64 for the norm

ZeRO as in arXiv 1910.02054, section 5, with the 4 bytes of gradient that the sum over micro-batches takes here. What
DeepSpeed's keys say is taken from the run (deepspeed_keys.py).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from model.config import ModelConfig
from model.network.layers import divisions, hidden_matrices
from model.network.transformer import Transformer
from training.config import ParallelConfig, RunConfig
from training.deepspeed_config import accumulation_steps
from training.plan.activations import Activations, Rows, activations, width_of
from training.plan.deepspeed_keys import keys_of
from training.plan.gradients import Gradients, Shares, gradients
from training.plan.kernels import FP32

OVERHEAD_GB = 2.0
"""Of CUDA's context, kernels and nccl: what torch does not count."""
FRAGMENTS = 1.04
"""What an allocator takes beyond what is asked for."""
FP64 = 8
"""Bytes of a number that norms are summed in."""


class Counts(NamedTuple):
    """Weights of one tensor rank."""

    all: int
    """Every weight that it holds."""
    block: int
    """Of one block, the largest."""
    hidden: int
    """In matrices of blocks."""
    largest: int
    """Of one weight, the largest."""
    small: int
    """In weights so small that ZeRO 3 never cuts them."""
    copied: int
    """In weights that every tensor rank holds whole."""
    of_heads: int
    """Among those, in norms of single heads."""


class Memory(NamedTuple):
    """Bytes of one rank's device."""

    weights: int
    gradients: Gradients
    master_weights: int
    moments: int
    gathered: int
    """Weights that ZeRO 3 has gathered at once."""
    activations: Activations
    block: int
    """Gradients of the weights of a block."""
    norm: int
    """A gradient while its norm is taken."""
    host: int
    """Offloaded to the host instead; what goes to NVMe is in neither."""
    snapshot: int
    """On the host besides: copies of what the rank writes into a checkpoint, kept from the first save on."""

    @property
    def held(self) -> int:
        """From step to step, and the gradients that a step sums."""
        return self.state + self.gradients.summed

    @property
    def state(self) -> int:
        """From step to step, gradients left out."""
        return self.weights + self.master_weights + self.moments

    @property
    def parts_of_moments(self) -> dict[str, dict[str, int]]:
        """By moment, what is there beside the state."""
        left, sums = self.activations, self.gradients
        kept = {"activations of blocks": left.blocks, "embeddings, last norms, loss": left.ends}
        gathered, buckets = {"gathered weights": self.gathered}, {"buckets of gradients": sums.buckets}
        later = {name: round(size * (1 - sums.first_reduction)) for name, size in kept.items()}
        # the output matrix's gradient is the first to be added to the sum, and gone where that is not its own memory
        again = left.recomputed + left.on_the_way - (left.matrix if sums.adds_up else 0)
        first = max(again, left.turned, 0)
        return {
            "loss": {"gradients": sums.before, **gathered, **kept, "a chunk of logits": left.logits},
            "backward": {"gradients": sums.before, **gathered, **kept, **buckets, "a block on its way": first},
            "first reduction": {"gradients": sums.at_first_reduction, **gathered, **later, **buckets}
            | {"a block on its way": left.recomputed + self.block, "gradients that are sent": sums.sent},
            "reduced": {"gradients": sums.reduced, **gathered, **buckets, "gradients that are sent": sums.sent},
            "norm": {"gradients": sums.at_norm, "a gradient in fp64": self.norm},
            "optimizer": {"gradients": sums.in_optimizer},
        }

    @property
    def moments_of_a_step(self) -> dict[str, int]:
        """What is held at the moments that may be the highest."""
        return {moment: self.state + sum(parts.values()) for moment, parts in self.parts_of_moments.items()}

    @property
    def peak(self) -> int:
        """The most that torch holds at once."""
        return max(self.moments_of_a_step.values())

    @property
    def needed(self) -> float:
        """What a GPU must have for it."""
        return self.peak * FRAGMENTS + OVERHEAD_GB * 1e9


def memory(run: RunConfig, vocab_size: int, num_ranks: int, rows: Rows, device: str = "cuda") -> Memory:
    """Of one of `num_ranks` devices, for micro-batches of these rows. ValueError when ranks cannot be grouped so."""
    training, parallel = run.training, run.parallel
    data_ranks = num_ranks // parallel.num_sharing
    keys, width = keys_of(run, data_ranks, device), width_of(training)
    counts = count(run.model, vocab_size, parallel, keys.kept_whole)
    replicas, stage = num_ranks // parallel.tensor, training.zero_stage
    share = -(-counts.all // replicas)
    weights = width * counts.all
    gathered = 0
    if stage == 3:
        whole = min(counts.small, keys.most_kept)
        near = counts.all // keys.copies_near if keys.copies_near > 1 else 0
        weights = width * (share + whole + near)
        gathered = width * min(counts.all - whole, keys.most_live)
    passes = accumulation_steps(run, data_ranks)
    sums = gradients(keys, stage, Shares(counts.all, share, counts.largest), width, passes, replicas)
    master_weights = FP32 * share if stage else 0
    # Muon keeps one moment of a hidden matrix, AdamW two of a weight
    kept = 2 * counts.all - (counts.hidden if run.optimizer.name == "muon" else 0)
    moments = FP32 * (-(-kept // replicas) if stage else kept)
    snapshot = FP32 * -(-(counts.all + kept) // replicas)
    host = 0
    if keys.offloads_optimizer:
        # with the part of the gradients that is updated with, that of the weights that goes back, and one on its way
        moved = master_weights + moments + (FP32 + width) * share + width * counts.largest
        moved += FP32 * share if passes > 1 else 0
        host += moved if keys.optimizer_on == "cpu" else 0
        master_weights = moments = 0
    if keys.weights_on != "device":
        host += weights if keys.weights_on == "cpu" else 0
        weights = 0
    left = activations(run.model, vocab_size, parallel, rows, width, device == "cuda")
    norm = FP64 * min(counts.largest, share) if stage else 0
    return Memory(weights, sums, master_weights, moments, gathered, left, width * counts.block, norm, host, snapshot)


def rows_of_vocabulary(run: RunConfig) -> int:
    """Rows of the embedding, as many as ranks can share."""
    size, tensor = run.model.vocab_size or run.tokenizer.vocab_size, run.parallel.tensor
    return -(-size // tensor) * tensor


def count(model: ModelConfig, vocab_size: int, parallel: ParallelConfig, kept_whole: int = 0) -> Counts:
    """Weights of one tensor rank, counted on the model itself, without memory for it.

    `kept_whole` are elements of the largest weight that ZeRO 3 never cuts.
    """
    return _count(model.model_dump_json(), vocab_size, parallel.tensor, kept_whole)


@functools.lru_cache(maxsize=256)
def _count(model: str, vocab_size: int, tensor: int, kept_whole: int) -> Counts:
    config = ModelConfig.model_validate_json(model)
    layers, encoder_layers = config.num_layers, config.encoder_layers
    fewer = {"num_layers": min(layers, 2), "num_encoder_layers": min(encoder_layers, 2) or None}
    with torch.device("meta"):
        whole = Transformer(config.model_copy(update=fewer), vocab_size)
    cut, hidden = divisions(whole), hidden_matrices(whole)
    sizes = {name: weight.numel() // (tensor if name in cut else 1) for name, weight in whole.named_parameters()}
    # the first block of a stack may have less than others, which are all like the second
    times = {"blocks.0.": 1, "blocks.1.": layers - 1, "encoder.blocks.0.": 1, "encoder.blocks.1.": encoder_layers - 1}
    number = {name: next((n for block, n in times.items() if name.startswith(block)), 1) for name in sizes}
    blocks = [sum(size for name, size in sizes.items() if name.startswith(block)) for block in times]

    def total(wanted: Callable[[str], bool]) -> int:
        return sum(size * number[name] for name, size in sizes.items() if wanted(name))

    return Counts(
        all=total(lambda name: True),
        block=max(blocks),
        hidden=total(lambda name: name in hidden),
        largest=max(sizes.values()),
        small=total(lambda name: sizes[name] <= kept_whole),
        copied=total(lambda name: name not in cut),
        of_heads=total(lambda name: name.endswith(("q_norm.weight", "k_norm.weight"))),
    )
