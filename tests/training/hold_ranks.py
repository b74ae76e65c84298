"""Run on two ranks by test_hold_back.py: steps that are passed over, beside an engine that never met them.

usage: python -m tests.training.hold_ranks DATASET OUTPUT.json
"""

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch

from tests.training.runs import VOCAB_SIZE, tiny_config
from tests.training.step_ranks import batches_of
from training.config import RunConfig
from training.distributed import World, connect, disconnect
from training.engine import Engine
from training.guards_config import GuardsConfig
from training.setup import build_engine
from training.spikes import Guard
from training.step import Patterns, StepInput, StepResult, count, run_step

OFFLOADED = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
WAYS: dict[str, dict] = {
    "zero0": {"training": {"zero_stage": 0}},
    "zero0 muon": {"training": {"zero_stage": 0}, "optimizer": {"name": "muon"}},
    "zero1 bf16": {"training": {"zero_stage": 1, "precision": "bf16"}},
    "zero2": {"training": {"zero_stage": 2}},
    "zero2 bf16 offloaded": {"training": {"zero_stage": 2, "precision": "bf16", "deepspeed": OFFLOADED}},
    "zero2 bf16 muon": {"training": {"zero_stage": 2, "precision": "bf16"}, "optimizer": {"name": "muon"}},
    "zero3": {"training": {"zero_stage": 3}},
    "zero3 bf16 offloaded": {"training": {"zero_stage": 3, "precision": "bf16", "deepspeed": OFFLOADED}},
    "zero2 tensor": {"training": {"zero_stage": 2}, "parallel": {"tensor": 2}},
    "zero1 context": {"training": {"zero_stage": 1}, "parallel": {"context": 2}},
}
Fault = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def infinite_loss(loss: torch.Tensor, entropies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss is infinite and its gradient sound."""
    return loss, entropies + float("inf")


def no_number(loss: torch.Tensor, entropies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Neither is a number."""
    return loss * float("nan"), entropies * float("nan")


def infinite_gradient(loss: torch.Tensor, entropies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss is sound and its gradient infinite."""
    loss.register_hook(lambda gradient: gradient * float("inf"))
    return loss, entropies


FAULTS: list[Fault] = [infinite_loss, no_number, infinite_gradient]


class Steps:
    """An engine that trains on the same batches again and again."""

    def __init__(self, config: RunConfig, world: World):
        self.world, axis = world, world.mesh.data
        self.engine: Engine = build_engine(config, VOCAB_SIZE + 1, world)  # even, for ranks that share it
        with batches_of(config, axis.rank, axis.size) as loader:
            batches = next(loader)
        patterns = [Patterns.of(batch) for batch in batches]
        self.data = StepInput(batches, patterns, count(batches, patterns, world))
        self.guard = Guard(GuardsConfig(), world.device)

    def step(self) -> StepResult:
        return run_step(self.engine, self.data, 1e-3, self.world, "step 1", self.guard)

    def bad_step(self, fault: Fault) -> str:
        """Why it was passed over; the fault is rank 1's alone."""
        forward, module = self.engine.module.forward, self.engine.module
        module.forward = lambda *data: fault(*forward(*data)) if self.world.rank == 1 else forward(*data)
        result = self.step()
        module.forward = forward
        assert result.held
        return result.why_held(*result.unsound_ranks(self.world))


def compare(config: RunConfig, world: World) -> dict:
    """Whether an engine that met each fault, at the beginning too, ends with the state of one that met none."""
    steps = Steps(config, world)
    reasons = [steps.bad_step(no_number)]
    steps.step()
    for fault in FAULTS:
        reasons.append(steps.bad_step(fault))
        steps.step()
    met = steps.engine.snapshot()
    steps.engine.close()
    steps = Steps(config, world)
    for _ in range(1 + len(FAULTS)):
        steps.step()
    undisturbed = steps.engine.snapshot()
    steps.engine.close()
    same = met.kinds.keys() == undisturbed.kinds.keys() and met.updates == undisturbed.updates
    same = same and all(torch.equal(met.kinds[kind], undisturbed.kinds[kind]) for kind in met.kinds)
    return {"same": world.sum([float(same)])[0] * world.mesh.tensor.size == world.size, "reasons": reasons}


def main() -> None:
    """Compares in all ways and writes what rank 0 saw."""
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    world = connect(timedelta(minutes=3))
    results = {}
    for name, sections in WAYS.items():
        config = tiny_config(data, **sections)
        results[name] = compare(config, world.grouped(**config.parallel.axes))
    if world.is_main:
        output.write_text(json.dumps(results))
    disconnect(world)


if __name__ == "__main__":
    main()
