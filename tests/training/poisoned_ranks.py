"""Ranks of a run that meet bad samples, and one whose memory fails: test_guarding.py starts them.

usage: python -m tests.training.poisoned_ranks RUN_DIR      (RUN_DIR/faults.json says which)
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from training import jumps, loop
from training.engine import Engine
from training.parts.comparing import Comparing
from training.worker import leave, main

SAMPLES = re.compile(r"step (\d+) \(samples (\d+) to \d+\)")


class Faults:
    """What happens to rank 1, by the samples or the step that it happens at."""

    def __init__(self, factors: dict[str, float], dies_at_jump: bool = False, flips_after: int | None = None):
        """Losses of a global batch that begins with such a sample are multiplied."""
        self.factors = {int(sample): factor for sample, factor in factors.items()}
        self.dies_at_jump, self.flips_after = dies_at_jump, flips_after
        self.first = 0

    def run_step(self, engine: Engine, data: Any, lr: float, world: Any, where: str, guard: Any) -> Any:
        """The step, once it is known which one it is."""
        self.first = int(SAMPLES.fullmatch(where)[2])  # type: ignore[index]
        return run_step(engine, data, lr, world, where, guard)

    def forward(self, engine: Engine, *arguments: Any) -> Any:
        """The forward pass of a micro-batch."""
        loss, entropies = forward(engine, *arguments)
        factor = self.factors.get(self.first, 1.0) if engine.world.rank == 1 else 1.0
        return loss * factor, entropies * factor

    def settle(self, *arguments: Any) -> Any:
        """What comes first after the decision to go back."""
        jumped = settle(*arguments)
        if jumped and self.dies_at_jump:
            os._exit(1)
        return jumped

    def after_step(self, part: Comparing, moment: Any) -> None:
        """A bit of one weight flips before ranks are compared."""
        if part.run.world.rank == 1 and moment.step == self.flips_after:
            with torch.no_grad():
                weight = next(part.engine.module.parameters())
                weight.view(torch.int32).view(-1)[7] ^= 1
        after_step(part, moment)


run_step, forward, settle, after_step = loop.run_step, Engine.__call__, jumps.settle, Comparing.after_step


def run(folder: Path) -> int:
    """A rank of the run, faults and all."""
    faults = Faults(**json.loads((folder / "faults.json").read_text()))
    with (
        mock.patch.object(loop, "run_step", faults.run_step),
        mock.patch.object(Engine, "__call__", lambda *arguments: faults.forward(*arguments)),
        mock.patch("training.setup.settle", faults.settle),
        mock.patch.object(Comparing, "after_step", lambda *arguments: faults.after_step(*arguments)),
    ):
        return main([str(folder)])


if __name__ == "__main__":
    leave(run(Path(sys.argv[1])))
