"""The plan of a run on a number of GPUs: does it fit, how long does it take, and what else would be better."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from common.mistakes import Mistake
from model.flops import num_parameters
from training.config import RunConfig
from training.plan.activations import Rows
from training.plan.machines import Machine
from training.plan.memory import Memory, memory, rows_of_vocabulary
from training.plan.speed import Speed, speed

SECONDS_OF_A_DAY = 86_400.0


class Plan(NamedTuple):
    """What is expected of one way to train."""

    run: RunConfig
    num_gpus: int
    machine: Machine
    vocab_size: int
    num_weights: int
    """Of the whole model."""
    memory: Memory
    speed: Speed

    @property
    def fits(self) -> bool:
        """Whether a GPU has room."""
        return self.memory.needed <= self.machine.memory_gb * 1e9

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs; of an encoder-decoder those of its encoder."""
        training = self.run.training
        return training.global_batch_size * training.sequence_length / self.speed.seconds

    @property
    def mfu(self) -> float:
        """Share of the peak that the model's own arithmetic reaches."""
        return self.speed.model_flops / (self.speed.seconds * self.num_gpus * self.machine.peak_flops)

    @property
    def days(self) -> float:
        """Of all steps."""
        return self.run.training.steps * self.speed.seconds / SECONDS_OF_A_DAY

    @property
    def gpu_hours(self) -> float:
        """Of all steps."""
        return 24 * self.days * self.num_gpus

    @property
    def layout(self) -> dict[str, Any]:
        """What `search` may change."""
        return _layout_of(self.run)


def _layout_of(run: RunConfig) -> dict[str, Any]:
    return {
        "training.zero_stage": run.training.zero_stage,
        "training.micro_batch_size": run.training.micro_batch_size,
        "model.activation_checkpointing": run.model.activation_checkpointing,
        "parallel.tensor": run.parallel.tensor,
        "parallel.context": run.parallel.context,
    }


def plan(run: RunConfig, num_gpus: int, machine: Machine, document: int | None, efficiency: float) -> Plan:
    """The plan of a run as it stands; documents of `document` tokens, or ones that fill their rows.

    ValueError when the GPUs cannot share the global batch, or be grouped as the config asks.
    """
    training, sharing = run.training, run.parallel.num_sharing
    if num_gpus % sharing:
        raise Mistake(
            f"parallel: {num_gpus} GPUs are no multiple of {run.parallel.sharing_in_words}; change one of them"
        )
    per_pass = num_gpus // sharing * training.micro_batch_size
    if training.global_batch_size % per_pass:
        raise Mistake(
            f"training.global_batch_size: {training.global_batch_size} is no multiple of micro_batch_size "
            f"{training.micro_batch_size} x {num_gpus} GPUs / {run.parallel.sharing_in_words}; use one of {per_pass}"
        )
    vocab_size = rows_of_vocabulary(run)
    rows = rows_of(run, document)
    return Plan(
        run,
        num_gpus,
        machine,
        vocab_size,
        num_parameters(run.model, vocab_size),
        memory(run, vocab_size, num_gpus, rows),
        speed(run, vocab_size, num_gpus, rows, machine, efficiency),
    )


def rows_of(run: RunConfig, document: int | None) -> Rows:
    """Tokens of a micro-batch; a decoder beside an encoder has `target_length`, or as many as the encoder."""
    training, samples = run.training, run.training.micro_batch_size
    length = min(document or training.sequence_length, training.sequence_length)
    if run.model.shape != "encdec":
        return Rows(samples * training.sequence_length, 0, length)
    target = training.target_length or training.sequence_length
    return Rows(samples * target, samples * training.sequence_length, min(length, target))


def search(run: RunConfig, num_gpus: int, machine: Machine, document: int | None, efficiency: float) -> list[Plan]:
    """Layouts that fit, the fastest first: stage, ranks to a layer and to a row, micro-batch and recomputation.

    Of those that are alike within a hundredth, the one that changes fewest keys of the config comes first.
    """
    now = _layout_of(run)

    def order(each: Plan) -> tuple:
        changed = sum(value != now[key] for key, value in each.layout.items())
        return rounded(each.speed.seconds), changed, each.run.training.zero_stage, each.memory.peak

    found = []
    for each in _layouts(run, num_gpus, machine):
        with contextlib.suppress(Mistake):  # what training.deepspeed says does not go with every stage
            found.append(plan(each, num_gpus, machine, document, efficiency))
    return sorted((each for each in found if each.fits), key=order)


def _layouts(run: RunConfig, num_gpus: int, machine: Machine) -> Iterator[RunConfig]:
    model, training = run.model, run.training
    sizes = [size for size in (1, 2, 4, 8, 16) if size <= machine.gpus and num_gpus % size == 0]
    recomputations = ("none", "attention", "full")
    stages = (1, 2, 3) if training.precision == "bf16" else (0, 1, 2, 3)
    for tensor, context in itertools.product(sizes, sizes):
        shared = tensor * context
        if shared > machine.gpus or model.num_heads % shared or model.kv_heads % shared or model.d_ff % tensor:
            continue
        per_data_rank = training.global_batch_size // (num_gpus // shared)
        for samples in (2**power for power in range(5)):
            rows = rows_of(run, None)
            uneven = any(number // training.micro_batch_size * samples % shared for number in rows[:2])
            if uneven or samples > per_data_rank or training.global_batch_size % (num_gpus // shared * samples):
                continue
            for stage, again in itertools.product(stages, recomputations):
                yield _changed(run, tensor, context, samples, stage, again)


def _changed(run: RunConfig, tensor: int, context: int, samples: int, stage: int, again: str) -> RunConfig:
    interval = run.model.activation_checkpointing_interval if again == "full" else 1
    how = {"activation_checkpointing": again, "activation_checkpointing_interval": interval}
    sequence = run.parallel.sequence_parallel if tensor > 1 else None
    parallel = {"tensor": tensor, "context": context, "sequence_parallel": sequence}
    return run.model_copy(
        update={
            "model": run.model.model_copy(update=how),
            "training": run.training.model_copy(update={"zero_stage": stage, "micro_batch_size": samples}),
            "parallel": run.parallel.model_copy(update=parallel),
        }
    )


def changes(before: Plan, after: Plan) -> dict[str, Any]:
    """Keys of the layout that differ."""
    return {key: value for key, value in after.layout.items() if before.layout[key] != value}


def rounded(number: float, digits: int = 3) -> float:
    """A number with so many digits that count."""
    if number == 0 or not math.isfinite(number):
        return number
    return round(number, digits - 1 - math.floor(math.log10(abs(number))))
