"""Bytes of gradients at the moments of a step, as DeepSpeed's ZeRO makes, sums, reduces and frees them.

    stage 0          the sum of all, which the optimizer takes as it is
    stage 1          the sum of all; the last backward pass reduces it to a replica's part
    stage 2          a replica's part, reduced bucket by bucket in every backward pass
    stage 3          the same, in memory that is never given back

A sum in fp32 of a model that computes in bf16 is made flat when it is reduced, any other when the optimizer takes it.
"""

from typing import NamedTuple

from training.plan.kernels import FP32
from training.plan.zero_keys import ZeroKeys


class Gradients(NamedTuple):
    """Bytes of one rank."""

    summed: int
    """Of the sum over the micro-batches of a step."""
    before: int
    """At the beginning of the last forward pass."""
    first_reduction: float
    """Share of the backward pass that is over when gradients are first reduced."""
    at_first_reduction: int
    reduced: int
    """When the last backward pass is over."""
    at_norm: int
    in_optimizer: int
    buckets: int
    """That gradients are copied into in a backward pass."""
    sent: int
    """A bucket put together, and once more in what ranks sum where that is another precision."""
    adds_up: bool
    """Whether a gradient is added to a sum that is there, so that its own memory is free again."""


def gradients(
    keys: ZeroKeys, stage: int, weights: int, share: int, largest: int, width: int, passes: int, replicas: int
) -> Gradients:
    """Of a rank with so many weights, of which it updates a share, in steps of so many passes."""
    mixed, again = width < FP32, passes > 1
    if stage == 0:
        whole = FP32 * weights
        return Gradients(whole, whole * again, 1.0, whole, whole, whole, whole, 0, 0, again)
    staging = FP32 if mixed and stage == 1 else width
    copies = (2 if keys.overlaps and stage < 3 else 1) * keys.bucket if keys.stages else 0
    together = min(max(keys.bucket, largest), weights) if keys.stages or replicas > 1 else 0
    sent = together * (staging + (FP32 if staging < FP32 else 0))
    begins = min(together / weights, 1.0) if stage > 1 or keys.overlaps else 1.0
    part = 0 if keys.offloads_optimizer else FP32 * share
    if stage == 1:
        whole = FP32 * weights
        before, flat = whole * again, part * mixed
        first = max(before, round(whole * begins)) + flat
        at_norm = whole + flat if mixed else part
        in_optimizer = at_norm if mixed else 2 * part
        return Gradients(
            whole, before, begins, first, whole + flat, at_norm, in_optimizer, copies * staging, sent, again
        )
    if stage == 2:
        first = part if mixed or again else round(part * begins)
        in_optimizer = part if mixed else 2 * part
        return Gradients(
            part, part * again, begins, first, part, part, in_optimizer, copies * staging, sent, mixed or again
        )
    return Gradients(part, part, begins, part, part, part, 2 * part, copies * FP32, sent, True)
