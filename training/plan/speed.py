"""Seconds of a step.

    products        FLOPs / (peak x efficiency); so are Muon's, a matrix on one rank
    attention       FLOPs / (peak x the share of it that the machine's kernels reach)
    memory          bytes of norms, activations, loss and optimizer / the memory's bandwidth (traffic.py)
    waiting         bytes sent (sent.py) / the bandwidth of the links, less what hides them

Gradients hide behind the backward pass, at stages 0 and 1 that of the last micro-batch; at stage 3 weights hide behind
the passes that they are gathered for. What the optimizer's step gathers, and what layers and rows exchange, nothing
hides. The shares below were chosen with published rows in view (docs/plan.md says which).
"""

from typing import NamedTuple

from model.flops import train_flops
from training.config import RunConfig
from training.deepspeed_config import accumulation_steps
from training.plan import traffic
from training.plan.activations import Rows, width_of
from training.plan.arithmetic import attention_flops, muon_flops, recomputed_flops, work_of
from training.plan.deepspeed_keys import keys_of
from training.plan.machines import Machine
from training.plan.memory import count
from training.plan.sent import Sent, between_layers, between_rows, gathered_weights, gradients

EFFICIENCY = 0.43
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
    model, parallel, stage = run.model, run.parallel, run.training.zero_stage
    data_ranks, replicas = num_gpus // parallel.num_sharing, num_gpus // parallel.tensor
    passes, keys = accumulation_steps(run, data_ranks), keys_of(run, data_ranks, "cuda")
    weights = count(model, vocab_size, parallel, keys.kept_whole)
    work = work_of(model, rows)
    needed, again = train_flops(model, vocab_size, work), recomputed_flops(model, work)
    attention = attention_flops(model, work)
    # ranks that share layers or rows do a part of a micro-batch each
    busy = (needed + again - attention) / efficiency + attention / machine.attention
    compute = passes * busy / (parallel.num_sharing * machine.peak_flops)
    if run.optimizer.name == "muon":
        found, owners = muon_flops(model), num_gpus if stage else parallel.tensor
        compute += max(found.all / owners, found.largest) / (machine.peak_flops * efficiency)
    passed = passes * traffic.of_micro_batch(model, vocab_size, parallel, rows, weights.all, width_of(run.training))
    passed += traffic.of_step(weights.all / (replicas if stage else 1))
    memory = passed / (machine.memory_gb_per_s * 1e9 * BANDWIDTH)
    sent = Sent(
        gradients(run, weights.all, replicas, passes),
        gathered_weights(run, weights, keys, replicas, passes),
        passes * between_layers(run, rows),
        passes * between_rows(run, rows),
    )
    computing = _Computing(compute + memory, needed / 3 / (needed + again), passes)
    exposed = _between_replicas(stage, sent, machine.bandwidth(replicas, parallel.tensor) * LINKS, computing)
    exposed += sent.layers / machine.bandwidth(parallel.tensor) / LINKS
    exposed += sent.rows / machine.bandwidth(parallel.context, parallel.tensor) / LINKS
    everywhere = float(passes * data_ranks)
    return Speed(everywhere * needed, everywhere * (needed + again), sent, compute, memory, exposed)


class _Computing(NamedTuple):
    seconds: float
    """Of a step."""
    forward: float
    """Share of it in forward passes."""
    passes: int


def _between_replicas(stage: int, sent: Sent, bandwidth: float, computing: _Computing) -> float:
    """Seconds that replicas wait for each other."""
    scattered, gathered = sent.gradients / bandwidth, sent.weights / bandwidth
    forward = computing.seconds * computing.forward
    backward = computing.seconds - forward
    if stage == 3:
        return _behind(gathered / 2, forward) + _behind(gathered / 2 + scattered, backward)
    return _behind(scattered, backward if stage == 2 else backward / computing.passes) + gathered


def _behind(seconds: float, computing: float) -> float:
    """What communication of so many seconds adds to computing that it may hide behind."""
    return max(seconds - computing, 0.0) + SHADOW * min(seconds, computing)
