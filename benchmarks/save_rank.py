"""A rank that trains and saves, for benchmarks/save.py."""

from pathlib import Path

from benchmarks.checkpoint import dd, timed, warm
from data_pipeline.manifest import Manifest
from data_pipeline.reading.batches import Reading
from data_pipeline.reading.loader import Loader
from training.config import RunConfig
from training.distributed import World
from training.events import EventLog
from training.parts.part import Moment, Part, Run
from training.parts.saving import Saving
from training.setup import build_engine
from training.state.identity import RunIdentity, RunState
from training.step import StepInput, train_step

WAYS = {"behind": True, "awaited": False}
"""How a save is done, and whether that is in the background."""
LR = 1e-4


class Complete(Part):
    """Remembers the folders of complete checkpoints."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def after_save(self, folder: Path) -> None:
        """Another one."""
        self.folders.append(folder)


class Rank:
    """One rank of a run, which saves when it is told to; all ranks are told the same."""

    def __init__(self, config: RunConfig, folder: Path, world: World):
        training, vocab_size = config.training, config.model.vocab_size or 0
        self.world, self.interval, self.number = world, config.checkpoint.interval_steps or 1, 0
        self.complete, self.engine = Complete(), build_engine(config, vocab_size, world)
        data, axis = Path(config.data.path), world.mesh.data
        reading = Reading(
            str(data),
            Manifest.load(data),
            config.objective,
            "causal",
            training.sequence_length,
            1,
            1,
            rank=axis.rank,
            world_size=axis.size,
        )
        self.loader = Loader(reading, global_batch_size=training.global_batch_size)
        identity = RunIdentity(world.size, training.zero_stage, training.precision, {}, "", {}, {})
        self.saving: dict[str, Saving] = {}
        for way, in_background in WAYS.items():
            checkpoint = config.checkpoint.model_copy(update={"in_background": in_background})
            ours = config.model_copy(update={"checkpoint": checkpoint})
            run = Run(ours, folder, world, identity, vocab_size, EventLog(folder, world.rank))
            self.saving[way] = Saving(run, self.engine, [self.complete])
            self.saving[way].begin()

    def train(self, steps: int) -> None:
        """Steps without a save."""
        for _ in range(steps):
            self.result = train_step(self.engine, next(self.loader), LR, self.world)
            self.number += 1

    def train_and_save(self, steps: int, way: str) -> Path:
        """Steps with a save after the first of them; over when the checkpoint is complete too."""
        self.number += -(self.number + 1) % self.interval
        before, saving = len(self.complete.folders), self.saving[way]
        for _ in range(steps):
            self.train(1)
            saving.after_step(self._moment)
        while len(self.complete.folders) == before:
            saving.after_step(self._moment)
        return self.complete.folders[-1]

    @property
    def _moment(self) -> Moment:
        return Moment(RunState(self.number), self.result, LR, 0.0, False, False, StepInput([], [], self.result.counts))

    def close(self) -> None:
        """Ends it."""
        self.loader.close()
        for saving in self.saving.values():
            saving.close()


def one_round(rank: Rank, interval: int) -> dict[str, float]:
    """Seconds of each thing, and bytes of a checkpoint; what saves took stands in the events."""
    world, complete = rank.world, rank.complete
    never, _ = timed(lambda: rank.train(interval), world)
    every, _ = timed(lambda: rank.train_and_save(interval, "behind"), world)
    rank.train_and_save(1, "awaited")
    copied, _ = timed(rank.engine.snapshot, world)
    files = sorted(complete.folders[-1].iterdir())
    figures = {"never": never, "every": every, "copied": copied}
    figures["bytes"] = sum(path.stat().st_size for path in files)
    if world.is_main:
        warm(files)
        figures["dd"] = dd(files, f"{complete.folders[-1].parents[1]}/copy-{{}}", "conv=fsync")
    return figures
