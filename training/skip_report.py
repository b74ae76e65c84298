"""What a step that was passed over was made of: RUN_DIR/skips/step-00000123.json, for whoever looks for the cause.

    losses of its micro-batches, gradients of the same batch once more, changing nothing -> the worst of all ranks

The step has changed nothing, so on a CPU the weights are those that it met; on a GPU, where it is looked at one step
later, the next step may have changed them.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from common.files import write_whole
from training.distributed import World
from training.engine import Engine
from training.state.folder import step_name
from training.step import StepInput, StepResult, run_again

FOLDER = "skips"
"""In a run's folder."""
SHOWN = 8
"""Micro-batches that are named."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """The worst that some ranks saw; of a fixed size, however many they are."""

    micro_batches: tuple[tuple[float, int, int], ...]
    """Highest losses in nats per target, each with rank and number of the micro-batch; infinite where no number."""
    gradients: dict[str, tuple[float, int]]
    """By weights, the largest norm of a rank's own gradient, before ranks are summed, and which rank's."""

    def __add__(self, other: "Findings") -> "Findings":
        worst = sorted((*self.micro_batches, *other.micro_batches), key=lambda found: (-found[0], *found[1:]))
        names = self.gradients.keys() | other.gradients.keys()
        pairs = {name: [of[name] for of in (self.gradients, other.gradients) if name in of] for name in names}
        largest = {name: min(found, key=lambda one: (-one[0], one[1])) for name, found in pairs.items()}
        return Findings(tuple(worst[:SHOWN]), largest)

    def as_json(self) -> bytes:
        """For people; null for what is no number."""
        losses = [dict(zip(("loss", "rank", "micro_batch"), found, strict=True)) for found in self.micro_batches]
        norms = {name: {"norm": norm, "rank": rank} for name, (norm, rank) in sorted(self.gradients.items())}
        facts = {"highest_losses": losses, "largest_gradients": norms}
        return json.dumps(json.loads(json.dumps(facts), parse_constant=lambda _: None), indent=1).encode()


def groups_of(name: str) -> tuple[str, str]:
    """The two groups a parameter is in: its block, or what it is outside of blocks; and its kind in all blocks."""
    block = re.match(r"\w+\.\d+", name)
    return block[0] if block else name, re.sub(r"\.\d+\.", ".*.", name)


def norms_by_group(squares: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Norms by group, of the squared norm of each parameter; infinite for what is no number."""
    sums: dict[str, float] = {}
    for name, square in squares:
        for group in set(groups_of(name)):
            sums[group] = sums.get(group, 0.0) + square
    return {group: _ordered(math.sqrt(total) if total >= 0 else total) for group, total in sums.items()}


def report(engine: Engine, data: StepInput, result: StepResult, world: World) -> Findings:
    """Computes the gradients of a step again and collects the worst of all ranks, which call it together."""
    squares: dict[str, torch.Tensor] = {}

    def note(name: str, gradient: torch.Tensor) -> None:
        squares[name] = squares.get(name, 0.0) + gradient.detach().float().square().sum().double()

    run_again(engine, data, world, result.where, note)
    norms = norms_by_group((name, float(square)) for name, square in squares.items())
    losses = (total / max(batch.num_targets, 1) for total, batch in zip(result.own_losses, data.batches, strict=True))
    mine = Findings(
        tuple((_ordered(loss), world.rank, number) for number, loss in enumerate(losses)),
        {name: (norm, world.rank) for name, norm in norms.items()},
    )
    return world.plane.join(mine + Findings((), {}), Findings.__add__)


def write_report(run_dir: Path, step: int, found: Findings) -> None:
    """Puts it into the run's folder."""
    (run_dir / FOLDER).mkdir(exist_ok=True)
    write_whole(run_dir / FOLDER / f"{step_name(step)}.json", found.as_json())


def _ordered(value: float) -> float:
    """NaN compares with nothing; infinity is the worst, too."""
    return math.inf if math.isnan(value) else value
