"""Seconds of a step.

    seconds = FLOPs / (peak x efficiency) + what is sent and nothing hides

Gradients hide behind the backward pass, what layers and rows exchange hides behind nothing.
"""

from typing import NamedTuple

from model.flops import train_flops
from training.config import RunConfig
from training.deepspeed_config import accumulation_steps
from training.plan.activations import Rows
from training.plan.arithmetic import recomputed_flops, work_of
from training.plan.machines import Machine
from training.plan.memory import count
from training.plan.sent import Sent, between_layers, between_replicas, between_rows

EFFICIENCY = 0.40
"""Share of the peak that a step's arithmetic runs at, kernels of all kinds together; docs/gpu.md measured 0.36."""
HIDING = 2 / 3
"""Share of the arithmetic behind which gradients can travel: that of the backward pass."""


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


def speed(run: RunConfig, vocab_size: int, num_gpus: int, rows: Rows, machine: Machine, efficiency: float) -> Speed:
    """A step of the run; `rows` are those of one micro-batch."""
    model, training, parallel = run.model, run.training, run.parallel
    passes = training.global_batch_size // training.micro_batch_size
    work = work_of(model, rows)
    model_flops = float(passes * train_flops(model, vocab_size, work))
    hardware_flops = model_flops + passes * recomputed_flops(model, work)
    replicas = num_gpus // parallel.tensor
    own_passes = accumulation_steps(run, num_gpus // parallel.num_sharing)
    sent = Sent(
        between_replicas(run, count(model, vocab_size, parallel).all, replicas, own_passes),
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
