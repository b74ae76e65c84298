"""What a part of the trainer is: hooks that the loop calls between steps, on every rank and in the same order.

begin -> before_step -> the step -> after_step -> ... -> finish (the run came to an end of its own) -> close
                                      |
          saving: before_save of the others -> checkpoint -> after_save of the others
"""

import dataclasses
from pathlib import Path

from training.config import RunConfig
from training.distributed import World
from training.events import EventLog
from training.local.folder import LocalFolder
from training.mixing import SourceCounts
from training.state.identity import RunIdentity, RunState
from training.step import StepInput, StepResult


@dataclasses.dataclass(frozen=True)
class Run:
    """What all parts of a run share."""

    config: RunConfig
    """Its configuration."""
    folder: Path
    """Where its files go."""
    world: World
    """This process among its peers."""
    identity: RunIdentity
    """What its checkpoints belong to."""
    vocab_size: int
    """Rows of the embedding."""
    events: EventLog
    """Its diary."""
    local: LocalFolder | None = None
    """Its folder on this node's own disk, where it saves there too."""
    sources: SourceCounts | None = None
    """How much of each source it has drawn, where it mixes several."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where a run stands after a step."""

    state: RunState
    """The step is counted in."""
    result: StepResult
    """What came of it; asking for its figures waits for the device, see `Part.reads`."""
    lr: float
    """Learning rate of the step."""
    waited: float
    """Seconds that the step waited for its data."""
    done: bool
    """Whether it was the last step of the run."""
    stopping: bool
    """Whether a rank was asked to stop, so that the run ends here."""
    data: StepInput
    """What this rank took."""

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    @property
    def last(self) -> bool:
        """Whether no step follows."""
        return self.done or self.stopping

    def due(self, interval: int | None) -> bool:
        """Whether something that comes every so many steps comes now; never without an interval."""
        return interval is not None and self.step % interval == 0


class Part:
    """Something beside the steps. A hook that a part has no use for does nothing."""

    def reads(self, moment: Moment) -> bool:
        """Whether `after_step` uses weights or figures of this step: it is then waited for, and checked, before."""
        return False

    def begin(self) -> None:
        """The run is about to begin."""

    def before_step(self, step: int) -> None:
        """Step number `step` is about to begin."""

    def after_step(self, moment: Moment) -> None:
        """A step is done."""

    def before_save(self) -> None:
        """A checkpoint is about to be written, from which what came before it must not be lost."""

    def after_save(self, folder: Path) -> None:
        """A checkpoint is complete."""

    def finish(self) -> None:
        """The run came to its last step, or was stopped."""

    def close(self) -> None:
        """The run ends here, well or not: nothing may go on."""
