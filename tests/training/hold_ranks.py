"""Run on two ranks by test_hold_back.py: steps that leave it to the device whether an update happens.

usage: python -m tests.training.hold_ranks DATASET OUTPUT.json
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch

from tests.training.runs import VOCAB_SIZE, tiny_config
from tests.training.step_ranks import batches_of, weights
from training.config import RunConfig
from training.distributed import World, connect, disconnect
from training.engine import Engine
from training.setup import build_engine
from training.step import Patterns, StepInput, StepResult, count, run_step

STEPS = 3
STAGES = {
    "zero0": (0, "fp32", "adamw"),
    "zero2": (2, "fp32", "adamw"),
    "zero2 bf16": (2, "bf16", "adamw"),
    "zero3": (3, "fp32", "adamw"),
    "zero2 bf16 muon": (2, "bf16", "muon"),
}


class Steps:
    """An engine and its batches."""

    def __init__(self, config: RunConfig, world: World, hold_back: bool):
        self.world = world
        self.engine: Engine = build_engine(config, VOCAB_SIZE, world)
        self.engine.__dict__["can_hold_back"] = hold_back  # as on a GPU
        self.loader = batches_of(config, world.rank, world.size)

    def step(self) -> StepResult:
        batches = next(self.loader)
        patterns = [Patterns.of(batch) for batch in batches]
        data = StepInput(batches, patterns, count(batches, patterns, self.world))
        return run_step(self.engine, data, 1e-3, self.world, "step 1")

    def close(self) -> None:
        self.loader.close()
        self.engine.close()


def compare(config: RunConfig, world: World) -> dict:
    """Losses and norms of both ways, and what a loss that is infinite with a sound gradient does on the second."""
    lines = {}
    for hold_back in (False, True):
        steps = Steps(config, world, hold_back)
        results = [steps.step() for _ in range(STEPS)]
        lines[str(hold_back)] = [(result.loss, result.grad_norm) for result in results]
        if not hold_back:
            steps.close()
    before = weights(steps.engine)
    infinite = steps.engine.module.forward

    def forward(*arguments):
        loss, entropy = infinite(*arguments)
        return loss, entropy + (float("inf") if world.rank == 1 else 0.0)

    steps.engine.module.forward = forward
    result = steps.step()
    unchanged = torch.equal(before, weights(steps.engine))
    try:
        result.check(world)
        message = ""
    except ValueError as error:
        message = str(error)
    steps.engine.module.forward = infinite
    steps.step()
    changed = not torch.equal(before, weights(steps.engine))
    steps.close()
    return {"lines": lines, "unchanged": unchanged, "message": message, "changed later": changed}


def main() -> None:
    """Compares at several stages and writes what rank 0 saw."""
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    world = connect(timedelta(minutes=3))
    results = {}
    for name, (stage, precision, optimizer) in STAGES.items():
        training = {"zero_stage": stage, "precision": precision}
        config = tiny_config(data, training=training, optimizer={"name": optimizer})
        results[name] = compare(config, world)
    if world.is_main:
        output.write_text(json.dumps(results))
    disconnect(world)


if __name__ == "__main__":
    main()
