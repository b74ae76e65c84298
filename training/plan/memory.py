"""Bytes of memory of one GPU while a run trains on it, part by part, and at the moments when it holds most.

    from step to step       weights, gradients, master weights, moments: as ZeRO cuts them between R replicas
    at the loss             + what blocks and ends have left, + a chunk of logits
    in the backward pass    + the same, + a block that is computed again, its gradients, and buckets on their way
    in the optimizer        + gradients made flat, at stage 1

ZeRO as in arXiv 1910.02054, section 5, with the 4 bytes of gradient that the sum over micro-batches takes here.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from model.config import ModelConfig
from model.network.layers import divisions
from model.network.transformer import Transformer
from training.config import ParallelConfig, RunConfig
from training.deepspeed_config import deepspeed_config
from training.plan.activations import FP32, Activations, Rows, activations, width_of

MOST_LIVE = 1_000_000_000
"""Weights that ZeRO 3 keeps gathered when DeepSpeed's keys do not say otherwise."""
KEPT_WHOLE = 100_000
"""Elements of the largest weight that it never cuts, likewise."""
OVERHEAD_GB = 2.0
"""Of CUDA's context, kernels and nccl: what torch does not count."""
FRAGMENTS = 1.04
"""What an allocator takes beyond what is asked for."""


class Counts(NamedTuple):
    """Weights of one tensor rank."""

    all: int
    """Every weight that it holds."""
    block: int
    """Of one block, the largest."""
    small: int
    """In weights so small that ZeRO 3 never cuts them."""
    copied: int
    """In weights that every tensor rank holds whole."""
    of_heads: int
    """Among those, in norms of single heads."""


class Memory(NamedTuple):
    """Bytes of one GPU."""

    weights: int
    gradients: int
    master_weights: int
    moments: int
    gathered: int
    """Weights that ZeRO 3 has gathered at once."""
    activations: Activations
    buffers: int
    """Gradients of a block and buckets of the backward pass."""
    flattened: int
    """Gradients that stage 1 makes flat, a replica's part of them, when its optimizer steps."""
    host: int
    """Offloaded to the host instead; what goes to NVMe is in neither."""

    @property
    def held(self) -> int:
        """From step to step."""
        return self.weights + self.gradients + self.master_weights + self.moments

    @property
    def moments_of_a_step(self) -> dict[str, int]:
        """What is held at the moments that may be the highest."""
        left = self.activations.blocks + self.activations.ends
        return {
            "loss": self.held + self.gathered + left + self.activations.logits,
            "backward": self.held + self.gathered + left + self.activations.recomputed + self.buffers,
            "optimizer": self.held + self.flattened,
        }

    @property
    def peak(self) -> int:
        """The most that torch holds at once."""
        return max(self.moments_of_a_step.values())

    @property
    def needed(self) -> float:
        """What a GPU must have for it."""
        return self.peak * FRAGMENTS + OVERHEAD_GB * 1e9


def memory(run: RunConfig, vocab_size: int, num_gpus: int, rows: Rows) -> Memory:
    """Of one of `num_gpus` GPUs, for micro-batches of these rows. ValueError when the ranks cannot be grouped so."""
    training, parallel = run.training, run.parallel
    counts = count(run.model, vocab_size, parallel)
    replicas, stage = num_gpus // parallel.tensor, training.zero_stage
    zero = deepspeed_config(run, num_gpus // parallel.num_sharing, "cuda")["zero_optimization"]
    width = width_of(training)
    share = -(-counts.all // replicas)
    weights = width * counts.all
    gathered = 0
    if stage == 3:
        weights = width * (share + counts.small)
        gathered = width * min(counts.all, int(zero.get("stage3_max_live_parameters", MOST_LIVE)))
    gradients = FP32 * (share if stage > 1 else counts.all)
    master_weights = FP32 * share if stage else 0
    moments = 2 * FP32 * (share if stage else counts.all)
    bucket = min(int(zero.get("reduce_bucket_size", 0)), counts.all) if stage and replicas > 1 else 0
    streams = 2 if zero.get("overlap_comm") else 1
    buffers = width * counts.block + bucket * (streams * width + (FP32 if width < FP32 else 0))
    host = 0
    if device := _place(zero, "offload_optimizer"):
        moved = master_weights + moments + (gradients if stage > 1 else 0)
        host += moved if device == "cpu" else 0
        gradients = gradients if stage < 2 else 0
        master_weights = moments = 0
    if device := _place(zero, "offload_param"):
        host += weights if device == "cpu" else 0
        weights = 0
    left = activations(run.model, vocab_size, parallel, rows, width)
    flattened = FP32 * share if stage == 1 else 0
    return Memory(weights, gradients, master_weights, moments, gathered, left, buffers, flattened, host)


def _place(zero: dict[str, Any], key: str) -> str:
    """Where something is offloaded to; empty where it stays."""
    device: str = zero.get(key, {}).get("device", "none")
    return "" if device == "none" else device


def rows_of_vocabulary(run: RunConfig) -> int:
    """Rows of the embedding, as many as ranks can share."""
    size, tensor = run.model.vocab_size or run.tokenizer.vocab_size, run.parallel.tensor
    return -(-size // tensor) * tensor


def count(model: ModelConfig, vocab_size: int, parallel: ParallelConfig) -> Counts:
    """Weights of one tensor rank, counted on the model itself, without memory for it."""
    return _count(model.model_dump_json(), vocab_size, parallel.tensor)


@functools.lru_cache(maxsize=256)
def _count(model: str, vocab_size: int, tensor: int) -> Counts:
    config = ModelConfig.model_validate_json(model)
    shallow = config.model_copy(update={"num_layers": 1, "num_encoder_layers": 1 if config.encoder_layers else None})
    with torch.device("meta"):
        whole = Transformer(shallow, vocab_size)
    cut = divisions(whole)
    sizes = {name: weight.numel() // (tensor if name in cut else 1) for name, weight in whole.named_parameters()}
    times = {"blocks": config.num_layers, "encoder.blocks": config.encoder_layers}
    number = {name: next((n for stack, n in times.items() if name.startswith(f"{stack}.")), 1) for name in sizes}
    blocks = [sum(size for name, size in sizes.items() if name.startswith(f"{stack}.")) for stack in times]

    def total(wanted: Callable[[str], bool]) -> int:
        return sum(size * number[name] for name, size in sizes.items() if wanted(name))

    return Counts(
        all=total(lambda name: True),
        block=max(blocks),
        small=total(lambda name: sizes[name] <= KEPT_WHOLE),
        copied=total(lambda name: name not in cut),
        of_heads=total(lambda name: name.endswith(("q_norm.weight", "k_norm.weight"))),
    )
