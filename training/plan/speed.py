"""Arithmetic, bytes sent and seconds of a step.

    seconds = FLOPs / (peak x efficiency) + what is sent and nothing hides

FLOPs are those of `model.flops`, exact by the pairs that documents allow, and those that are computed again. Rings
send (n - 1) / n of what they carry, once to gather or to scatter, twice to sum; gradients hide behind the backward
pass, what layers and rows exchange hides behind nothing.
"""

from typing import NamedTuple

from model.config import ModelConfig
from model.flops import Work, train_flops
from training.config import RunConfig
from training.plan.activations import FP32, Rows
from training.plan.machines import Machine
from training.plan.memory import count

BF16 = 2
EFFICIENCY = 0.40
"""Share of the peak that a step's arithmetic runs at, kernels of all kinds together; docs/gpu.md measured 0.36."""
HIDING = 2 / 3
"""Share of the arithmetic behind which gradients can travel: that of the backward pass."""


class Sent(NamedTuple):
    """Bytes that one GPU sends in a step."""

    gradients: float
    """Between replicas: gradients, and weights where ZeRO has cut them."""
    layers: float
    """Between the ranks that share layers."""
    rows: float
    """Between the ranks that share rows."""


class Speed(NamedTuple):
    """A step."""

    model_flops: float
    """Of the model, over all GPUs: what MFU counts."""
    hardware_flops: float
    """With what is computed again."""
    sent: Sent
    compute_seconds: float
    exposed_seconds: float
    """Of sending that nothing hides."""

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.compute_seconds + self.exposed_seconds


def work_of(model: ModelConfig, rows: Rows) -> Work:
    """Tokens and allowed pairs of rows that documents of `rows.document` tokens fill."""
    length = max(rows.document, 1)
    square, triangle = length, (length + 1) / 2
    own = square if model.shape == "encoder" else triangle
    read = rows.encoder_tokens
    share = read / rows.tokens if rows.tokens else 0
    return Work(
        rows.tokens,
        round(rows.tokens * own),
        read,
        round(read * square * share),
        round(rows.tokens * square * share) if read else 0,
    )


def speed(run: RunConfig, vocab_size: int, num_gpus: int, rows: Rows, machine: Machine, efficiency: float) -> Speed:
    """A step of the run; `rows` are those of one micro-batch."""
    model, training, parallel = run.model, run.training, run.parallel
    passes = training.global_batch_size // training.micro_batch_size
    forward = train_flops(model, vocab_size, work_of(model, rows)) / 3
    model_flops = 3.0 * forward * passes
    hardware_flops = model_flops + _again(model, rows) * passes
    replicas = num_gpus // parallel.tensor
    own_passes = passes // (num_gpus // parallel.num_sharing)
    sent = Sent(
        _between_replicas(run, count(model, vocab_size, parallel).all, replicas, own_passes),
        own_passes * _between_layers(run, rows),
        own_passes * _between_rows(run, rows),
    )
    compute = hardware_flops / (num_gpus * machine.peak_flops * efficiency)
    inside = machine.node_gb_per_s * 1e9
    outside = inside if num_gpus <= machine.gpus else machine.network_gb_per_s * 1e9
    rows_inside = parallel.num_sharing <= machine.gpus
    exposed = max(0.0, sent.gradients / outside - HIDING * compute)
    exposed += sent.layers / inside + sent.rows / (inside if rows_inside else outside)
    return Speed(model_flops, hardware_flops, sent, compute, exposed)


def _again(model: ModelConfig, rows: Rows) -> float:
    """FLOPs of a micro-batch that are computed a second time."""
    if model.activation_checkpointing == "none":
        return 0.0
    work = work_of(model, rows)
    blocks = train_flops(model, 0, work) / 3
    if model.activation_checkpointing == "full":
        return blocks / model.activation_checkpointing_interval
    without = model.model_copy(update={"d_ff": 0})
    return train_flops(without, 0, work) / 3


def _between_replicas(run: RunConfig, weights: int, replicas: int, passes: int) -> float:
    """Gradients in their sum's precision, and weights gathered: once a step, at stage 3 twice a micro-batch."""
    if replicas == 1:
        return 0.0
    ring, stage = (replicas - 1) / replicas, run.training.zero_stage
    gradient = weights * (BF16 if run.training.gradient_communication == "bf16" else FP32)
    width = weights * (BF16 if run.training.precision == "bf16" else FP32)
    if stage == 0:
        return 2 * ring * gradient
    if stage == 1:
        return ring * (2 * gradient + width)
    if stage == 2:
        return ring * (passes * gradient + width)
    return ring * passes * (gradient + 2 * width)


def _between_layers(run: RunConfig, rows: Rows) -> float:
    """Of a micro-batch, by arXiv 2205.05198, section 4.2: each attention and each feed-forward sums or gathers rows."""
    tensor, model = run.parallel.tensor, run.model
    if tensor == 1:
        return 0.0
    width = BF16 if run.training.precision == "bf16" else FP32
    ring, tokens = (tensor - 1) / tensor, rows.tokens // run.parallel.context
    read = rows.encoder_tokens // run.parallel.context
    one = model.d_model * width * ring
    # forward: gather and scatter, or one sum of both; backward: the same, and one more gather with cut rows
    each = (2 + 3) if run.parallel.cuts_rows else (2 + 2)
    again = 2 / model.activation_checkpointing_interval if model.activation_checkpointing == "full" else 0
    per_stack = [(model.num_layers, tokens, 2), (model.encoder_layers, read, 2)]
    total = sum(number * parts * length * (each + again) for number, length, parts in per_stack)
    if read:  # cross-attention reads and sums its own rows, and gathers the encoder's
        total += model.num_layers * (each + again) * tokens + model.num_layers * 3 * read
    return total * one


def _between_rows(run: RunConfig, rows: Rows) -> float:
    """Of a micro-batch: queries, keys, values and what attention gives, there and back in both directions."""
    context, model = run.parallel.context, run.model
    if context == 1:
        return 0.0
    width = BF16 if run.training.precision == "bf16" else FP32
    share = (context - 1) / context / context / run.parallel.tensor * model.head_size * width
    tokens, read = rows.tokens, rows.encoder_tokens
    heads, groups = model.num_heads, model.kv_heads
    own = model.num_layers * tokens * (2 * heads + 2 * groups) + model.encoder_layers * read * (2 * heads + 2 * groups)
    crossed = model.num_layers * (2 * heads * tokens + 2 * groups * read) if read else 0
    return 2 * (own + crossed) * share
