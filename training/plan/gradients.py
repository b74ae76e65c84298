"""Bytes of gradients at the moments of a step, as DeepSpeed's ZeRO makes, sums, reduces and frees them.

    stage 0          the sum of all, which the optimizer takes as it is
    stage 1          the sum of all; the last backward pass reduces it to a replica's part
    stage 2          a replica's part, reduced bucket by bucket in every backward pass
    stage 3          the same, in memory that is never given back

A sum in fp32 of a model that computes in bf16 is made flat when it is reduced, any other when the optimizer takes it.
"""

from typing import NamedTuple

from training.plan.deepspeed_keys import ZeroKeys
from training.plan.kernels import FP32


class Gradients(NamedTuple):
    """Bytes of one rank."""

    summed: int
    """Of the sum over the micro-batches of a step."""
    before: int
    """At the beginning of the last forward pass."""
    at_first_reduction: int
    reduced: int
    """When the last backward pass is over."""
    at_norm: int
    in_optimizer: int
    first_reduction: float = 1.0
    """Share of the backward pass that is over when gradients are first reduced."""
    adds_up: bool = False
    """Whether a gradient is added to a sum that is there, so that its own memory is free again."""
    buckets: int = 0
    """That gradients are copied into in a backward pass."""
    sent: int = 0
    """A bucket put together, and once more in what ranks sum where that is another precision."""


class Shares(NamedTuple):
    """Weights of a rank."""

    all: int
    """That it computes with."""
    own: int
    """That it updates."""
    largest: int
    """Of one of them, the largest."""


def gradients(keys: ZeroKeys, stage: int, weights: Shares, width: int, passes: int, replicas: int) -> Gradients:
    """Of a rank that computes with numbers of `width` bytes, in steps of so many passes."""
    mixed, again = width < FP32, passes > 1
    whole, part = FP32 * weights.all, 0 if keys.offloads_optimizer else FP32 * weights.own
    if stage == 0:
        return Gradients(whole, whole * again, whole, whole, whole, whole, adds_up=again)
    staging = FP32 if mixed and stage == 1 else width
    together = min(max(keys.bucket, weights.largest), weights.all) if keys.stages or replicas > 1 else 0
    begins = min(together / weights.all, 1.0) if stage > 1 or keys.overlaps else 1.0
    if stage == 1:
        flat = part * mixed
        sums = Gradients(
            summed=whole,
            before=whole * again,
            at_first_reduction=max(whole * again, round(whole * begins)) + flat,
            reduced=whole + flat,
            at_norm=whole + flat if mixed else part,
            in_optimizer=whole + flat if mixed else 2 * part,
            adds_up=again,
        )
    else:
        kept = stage == 3 or again
        once_more = min(part, FP32 * keys.sub_group) if stage == 3 else part * (not mixed)
        sums = Gradients(
            summed=part,
            before=part * kept,
            at_first_reduction=part if mixed or kept else round(part * begins),
            reduced=part,
            at_norm=part,
            in_optimizer=part + once_more,
            adds_up=mixed or kept,
        )
    copies = (2 if keys.overlaps and stage < 3 else 1) * keys.bucket if keys.stages else 0
    return sums._replace(
        first_reduction=begins,
        buckets=copies * (FP32 if stage == 3 else staging),
        sent=together * (staging + (FP32 if staging < FP32 else 0)),
    )
