"""Seconds of a step.

    products        FLOPs / (peak x efficiency)
    attention       FLOPs / (peak x the share of it that the machine's kernels reach)
    memory          bytes of norms, activations, loss and optimizer / the memory's bandwidth (traffic.py)
    waiting         bytes sent (sent.py) / the bandwidth of the links, less what hides them

Gradients hide behind the backward pass, at stages 0 and 1 that of the last micro-batch; at stage 3 weights hide behind
the passes that they are gathered for. What the optimizer's step gathers, and what layers and rows exchange, nothing
hides.
"""

from typing import NamedTuple

from model.flops import train_flops
from training.config import RunConfig
from training.deepspeed_config import accumulation_steps
from training.plan import traffic
from training.plan.activations import Rows, width_of
from training.plan.arithmetic import attention_flops, recomputed_flops, work_of
from training.plan.machines import Machine
from training.plan.memory import count
from training.plan.sent import Sent, between_layers, between_rows, gathered_weights, gradients
from training.plan.zero_keys import zero_keys

EFFICIENCY = 0.44
"""Share of the peak that matrix products reach: of our own steps on one H200 (docs/gpu.md)."""
BANDWIDTH = 0.85
"""Share of a memory's bandwidth that passes over it reach."""
LINKS = 0.80
"""Share of a link's bandwidth that collectives reach."""
SHADOW = 0.5
"""Share of hidden communication's time that computing is slowed down by: it takes multiprocessors and memory."""


class Speed(NamedTuple):
    """A step."""

    model_flops: float
    """Of the model, over all GPUs: what MFU counts."""
    hardware_flops: float
    """With what is computed again."""
    sent: Sent
    compute_seconds: float
    """Of products and attention."""
    memory_seconds: float
    """Of what only passes through a GPU's memory."""
    exposed_seconds: float
    """Of sending that nothing hides."""

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.compute_seconds + self.memory_seconds + self.exposed_seconds


def speed(run: RunConfig, vocab_size: int, num_gpus: int, rows: Rows, machine: Machine, efficiency: float) -> Speed:
    """A step of the run; `rows` are those of one micro-batch."""
    model, training, parallel = run.model, run.training, run.parallel
    passes = accumulation_steps(run, num_gpus // parallel.num_sharing)
    keys = zero_keys(run, num_gpus // parallel.num_sharing, "cuda")
    counts, replicas = count(model, vocab_size, parallel, keys.kept_whole), num_gpus // parallel.tensor
    work, weights = work_of(model, rows), counts.all
    needed, again = train_flops(model, vocab_size, work), recomputed_flops(model, work)
    attention = attention_flops(model, work)
    # ranks that share layers or rows do a part of a micro-batch each
    busy = (needed + again - attention) / efficiency + attention / machine.attention
    compute = passes * busy / (parallel.num_sharing * machine.peak_flops)
    width = width_of(training)
    bytes_moved = passes * traffic.of_micro_batch(model, vocab_size, parallel, rows, weights, width)
    bytes_moved += traffic.of_step(weights / (replicas if training.zero_stage else 1))
    memory = bytes_moved / (machine.memory_gb_per_s * 1e9 * BANDWIDTH)
    sent = Sent(
        gradients(run, weights, replicas, passes),
        gathered_weights(run, counts, keys, replicas, passes),
        passes * between_layers(run, rows),
        passes * between_rows(run, rows),
    )
    forward = needed / 3 / (needed + again) * (compute + memory)
    exposed = _exposed(
        training.zero_stage,
        sent,
        machine.bandwidth(replicas, parallel.tensor) * LINKS,
        forward,
        compute + memory,
        passes,
    )
    exposed += sent.layers / machine.bandwidth(parallel.tensor) / LINKS
    exposed += sent.rows / machine.bandwidth(parallel.context, parallel.tensor) / LINKS
    samples = training.global_batch_size // training.micro_batch_size
    return Speed(float(samples * needed), float(samples * (needed + again)), sent, compute, memory, exposed)


def _exposed(stage: int, sent: Sent, bandwidth: float, forward: float, both: float, passes: int) -> float:
    """Seconds that replicas wait for each other; `forward` and `both` are seconds of all passes of a step."""
    scattered, gathered = sent.gradients / bandwidth, sent.weights / bandwidth
    if stage == 3:
        return _behind(gathered / 2, forward) + _behind(gathered / 2 + scattered, both - forward)
    hiding = both - forward
    return _behind(scattered, hiding if stage == 2 else hiding / passes) + gathered


def _behind(seconds: float, computing: float) -> float:
    """What communication of so many seconds adds to computing that it may hide behind."""
    return max(seconds - computing, 0.0) + SHADOW * min(seconds, computing)
