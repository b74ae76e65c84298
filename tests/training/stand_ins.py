"""Small stand-ins of what a trainer needs around the part that a test is about: an engine, a run, a moment."""

import contextlib
from pathlib import Path

import torch

from tests.training.runs import tiny_config
from training.config import RunConfig
from training.distributed import World
from training.engine import HoldBack
from training.events import EventLog
from training.parts.part import Moment, Run
from training.state.identity import RunState
from training.step import StepClock, StepCounts, StepInput, StepResult


class Weight(torch.nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))


class OneWeight:
    """An engine of a model with a single weight, which each step lowers by lr; `losses` are those of the passes."""

    def __init__(self, num_micro_batches: int, losses: list[float] | None = None):
        self.num_micro_batches = num_micro_batches
        self.module = Weight()
        self.losses = losses or []
        self.passes = 0

    def __call__(self, batch, patterns):
        loss = self.losses[self.passes] if self.passes < len(self.losses) else float(batch.num_targets)
        self.passes += 1
        loss = torch.tensor(loss) + 0 * self.module.weight
        return loss, loss.detach()[None]

    def watching_gradients(self, note):
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, lr: float, hold_back: HoldBack | None = None) -> torch.Tensor:
        norm = torch.tensor(0.5)
        if self.passes % self.num_micro_batches:
            return torch.zeros(())
        with torch.no_grad():
            change = torch.tensor(lr)
            self.module.weight -= change if hold_back is None else torch.where(hold_back(norm), 0.0, change)
        return norm


def run_in(folder: Path, config: RunConfig | None = None, world: World | None = None) -> Run:
    """A run in this folder, of this rank or of one alone."""
    config, world = config or tiny_config(Path("none")), world or World.alone()
    return Run(config, folder, world, identity=None, vocab_size=307, events=EventLog(folder, world.rank))  # type: ignore


def result_of(
    loss: float = 5.0,
    norm: float = 1.5,
    counts: StepCounts | None = None,
    further: tuple[float, ...] = (),
    held: bool = False,
    own: float = 5.0,
    **seconds: float,
) -> StepResult:
    """What came of a step; `further` are summed losses of further depths, `own` is that of this rank."""
    counts = counts or StepCounts(targets=900, tokens=900, padding=100, documents_cut=3, pairs=5000)
    total = torch.tensor([loss * counts.targets, *further], dtype=torch.float64)
    scalars = {"own": torch.tensor(own), "total": total, "norm": torch.tensor(norm), "held": torch.tensor(held)}
    result = StepResult(counts, "step 1", StepClock(torch.device("cpu")), scalars | {"limits": torch.zeros(2)})
    result.seconds = {"forward": 0.2, "backward": 0.5, "optimizer": 0.1, "step": 1.0} | seconds
    return result


NOTHING = StepInput([], [], StepCounts())
"""What no rank took."""


def moment_of(step: int, *, done: bool = False, stopping: bool = False, result: StepResult | None = None) -> Moment:
    """Where a run stands after this step."""
    return Moment(RunState(step, 16 * step, 900 * step), result or result_of(), 1e-3, 0.1, done, stopping, NOTHING)
