"""Arithmetic, bytes sent and seconds of a step.

    seconds = FLOPs / (peak x efficiency) + what is sent and nothing hides

FLOPs are those of `model.flops`, exact by the pairs that documents allow, and those that are computed again. Rings
send (n - 1) / n of what they carry, once to gather or to scatter, twice to sum; gradients hide behind the backward
pass, what layers and rows exchange hides behind nothing.
"""

from typing import NamedTuple

from model.config import ModelConfig
from model.flops import Work, train_flops
from model.kernels.pattern import Document
from training.config import RunConfig
from training.deepspeed_config import accumulation_steps
from training.plan.activations import BF16, FP32, Rows, width_of
from training.plan.machines import Machine
from training.plan.memory import count, rows_of_vocabulary

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
        _window_pairs(model.sliding_window, rows.tokens, length, model.shape == "encoder"),
        _window_pairs(model.sliding_window, read, length * share, True) or 0,
        _further_pairs(model, rows.tokens, length),
    )


def _further_pairs(model: ModelConfig, tokens: int, length: float) -> int | None:
    """Pairs of all further depths; None without any."""
    layers = range(model.num_layers, model.num_layers + model.multi_token_depths)
    windows = [model.sliding_window if model.slides(index) else round(length) for index in layers]
    return sum(_window_pairs(window, tokens, length, False) or 0 for window in windows) if windows else None


def _window_pairs(window: int | None, tokens: int, length: float, is_square: bool) -> int | None:
    """Pairs within a window of documents of `length` tokens that fill `tokens`; None without a window."""
    if window is None:
        return None
    size = max(round(length), 1)
    square = size if is_square else 0
    return round(tokens / size * Document(size, size, square, square).within(window).num_pairs)


def speed(run: RunConfig, vocab_size: int, num_gpus: int, rows: Rows, machine: Machine, efficiency: float) -> Speed:
    """A step of the run; `rows` are those of one micro-batch."""
    model, training, parallel = run.model, run.training, run.parallel
    passes = training.global_batch_size // training.micro_batch_size
    forward = train_flops(model, vocab_size, work_of(model, rows)) / 3
    model_flops = 3.0 * forward * passes
    hardware_flops = model_flops + _again(model, rows) * passes
    replicas = num_gpus // parallel.tensor
    own_passes = accumulation_steps(run, num_gpus // parallel.num_sharing)
    sent = Sent(
        _between_replicas(run, count(model, vocab_size, parallel).all, replicas, own_passes),
        own_passes * between_layers(run, rows),
        own_passes * between_rows(run, rows),
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
    merges = 2 * 2 * model.d_model**2 * model.multi_token_depths * rows.tokens
    return train_flops(without, 0, work) / 3 - merges


def _between_replicas(run: RunConfig, weights: int, replicas: int, passes: int) -> float:
    """Gradients in their sum's precision, and weights gathered: once a step, at stage 3 twice a micro-batch."""
    if replicas == 1:
        return 0.0
    ring, stage = (replicas - 1) / replicas, run.training.zero_stage
    gradient = weights * (BF16 if run.training.gradient_communication == "bf16" else FP32)
    width = weights * width_of(run.training)
    if stage == 0:
        return 2 * ring * gradient
    if stage == 1:
        return ring * (2 * gradient + width)
    if stage == 2:
        return ring * (passes * gradient + width)
    return ring * passes * (gradient + 2 * width)


def between_layers(run: RunConfig, rows: Rows) -> float:
    """Of a micro-batch, between the ranks that share layers (arXiv 2205.05198, section 4.2).

    In units of one tensor [T, M] gathered or scattered, which is half of one that is summed.
    """
    tensor, model = run.parallel.tensor, run.model
    if tensor == 1:
        return 0.0
    sequence, width = run.parallel.cuts_rows, width_of(run.training)
    tokens, read = rows.tokens // run.parallel.context, rows.encoder_tokens // run.parallel.context
    depths = model.multi_token_depths
    units = 2.0 * (2 * (1 + depths) * tokens + read)  # embeddings, and the states that the loss reads
    # What a further depth merges is gathered, two tensors wide, and scattered, or summed; where it is computed again
    # that is sent once more, and its block's last sum, which a norm reads.
    again = sum(model.recomputes(model.num_layers + depth) for depth in range(depths))
    units += (6 * depths + 4 * again) * tokens
    for layers, length, other in ((model.num_layers + depths, tokens, read), (model.encoder_layers, read, 0)):
        parts, again = 3 if other else 2, _recomputed_layers(model, layers)
        # An attention or a feed-forward gathers rows and scatters sums, or sums; backward the same, and with cut rows
        # once more for the gradient of a weight, whose input was not kept whole.
        units += length * layers * parts * (5 if sequence else 4)
        # What is computed again ends with the last tensor that is needed: the sum behind it is not.
        if model.activation_checkpointing == "full":
            units += length * again * (2 * parts - 1 if sequence else 2 * (parts - 1))
        elif sequence:
            units += length * again * (parts - 1)
        if other:  # keys and values of what is read: gathered, or summed backward
            units += other * (layers * (3 if sequence else 2) + (again if sequence else 0))
    weights = count(model, rows_of_vocabulary(run), run.parallel)
    # weights on every rank are used on its own rows or heads, so their gradients are summed; then the loss's numbers
    sums = 2 * ((weights.copied if sequence else weights.of_heads) * width + (1 + depths) * 3 * FP32 * tokens)
    return (tensor - 1) / tensor * (units * model.d_model * width + sums)


def _recomputed_layers(model: ModelConfig, layers: int) -> int:
    """Blocks of a stack that are computed again, or whose attention is."""
    how = {"none": 0, "attention": layers, "full": -(-layers // model.activation_checkpointing_interval)}
    return how[model.activation_checkpointing]


def between_rows(run: RunConfig, rows: Rows) -> float:
    """Of a micro-batch: queries, keys, values and what attention gives, there and back in both directions."""
    context, model = run.parallel.context, run.model
    if context == 1:
        return 0.0
    width = width_of(run.training)
    share = (context - 1) / context / context / run.parallel.tensor * model.head_size * width
    tokens, read, both = rows.tokens, rows.encoder_tokens, 2 * model.num_heads + 2 * model.kv_heads
    own = tokens * both + (2 * model.num_heads * tokens + 2 * model.kv_heads * read if read else 0)
    layers = model.num_layers + model.multi_token_depths
    total = own * (2 * layers + _recomputed_layers(model, layers))
    total += read * both * (2 * model.encoder_layers + _recomputed_layers(model, model.encoder_layers))
    return total * share
