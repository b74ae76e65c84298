"""Bytes that a GPU sends: between replicas, between ranks that share layers, between ranks that share rows.

Rings send (n - 1) / n of what they carry, once to gather or to scatter, twice to sum.
"""

from typing import NamedTuple

from training.config import RunConfig
from training.plan.activations import BF16, FP32, Rows, width_of
from training.plan.arithmetic import recomputed_depths, recomputed_layers
from training.plan.deepspeed_keys import ZeroKeys
from training.plan.memory import Counts, count, rows_of_vocabulary


class Sent(NamedTuple):
    """Bytes that one GPU sends in a step."""

    gradients: float
    """Between replicas."""
    weights: float
    """Between replicas, where ZeRO has cut them."""
    layers: float
    """Between the ranks that share layers."""
    rows: float
    """Between the ranks that share rows."""


def gradients(run: RunConfig, weights: int, replicas: int, passes: int) -> float:
    """Of a step, in their sum's precision: summed once, at stage 2 with every micro-batch, at 3 only scattered.

    DeepSpeed's stage 2 sums whole buckets and keeps its part of them (`use_multi_rank_bucket_allreduce`).
    """
    each = weights * (BF16 if run.training.gradient_communication == "bf16" else FP32) * (replicas - 1) / replicas
    return each * {0: 2, 1: 2, 2: 2 * passes, 3: passes}[run.training.zero_stage]


def gathered_weights(run: RunConfig, weights: Counts, keys: ZeroKeys, replicas: int, passes: int) -> float:
    """Of a step: all that are cut, after the optimizer's.

    At stage 3 for every micro-batch, once more for its backward pass where not all may stay gathered until then; small
    weights are whole, and gathered when they have changed.
    """
    cut = weights.all - weights.small
    in_a_pass = cut * (2 if cut > keys.most_live else 1)
    times = {0: 0, 1: weights.all, 2: weights.all, 3: passes * in_a_pass + weights.small}[run.training.zero_stage]
    return times * width_of(run.training) * (replicas - 1) / replicas


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
    # What a block computes again ends with the last tensor that is needed: the sum behind it is not, unless a norm of
    # the block reads it.
    last = 0 if model.norm_placement != "pre" else 1 if sequence else 2
    # What a further depth merges is gathered, two tensors wide, and scattered, or summed; where it is computed again
    # that is sent once more, and its block's last sum, which a norm reads.
    units += (6 * depths + ((3 if sequence else 2) + last) * recomputed_depths(model)) * tokens
    # The map before the output projection gathers and scatters, or sums; backward the same.
    units += 4 * (1 + depths) * model.head_transform * tokens
    for layers, length, other in ((model.num_layers + depths, tokens, read), (model.encoder_layers, read, 0)):
        parts, again = 3 if other else 2, recomputed_layers(model, layers)
        # An attention or a feed-forward gathers rows and scatters sums, or sums; backward the same, and with cut rows
        # once more for the gradient of a weight, whose input was not kept whole.
        units += length * layers * parts * (5 if sequence else 4)
        if model.activation_checkpointing == "full":
            units += length * again * (2 * parts - last)
        elif sequence:
            units += length * again * (parts - 1)
        if other:  # keys and values of what is read: gathered, or summed backward
            units += other * (layers * (3 if sequence else 2) + (again if sequence else 0))
    weights = count(model, rows_of_vocabulary(run), run.parallel)
    # of the map before the output projection, which every depth uses
    vectors = model.bias + (2 if model.norm == "layernorm" and model.bias else 1)
    copied = weights.copied + depths * model.head_transform * vectors * model.d_model
    # weights on every rank are used on its own rows or heads, so their gradients are summed; then the loss's numbers
    sums = 2 * ((copied if sequence else weights.of_heads) * width + (1 + depths) * 3 * FP32 * tokens)
    return (tensor - 1) / tensor * (units * model.d_model * width + sums)


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
    total = own * (2 * layers + recomputed_layers(model, layers))
    total += read * both * (2 * model.encoder_layers + recomputed_layers(model, model.encoder_layers))
    return total * share
