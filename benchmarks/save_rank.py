"""A rank that trains and saves, for benchmarks/save.py."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.checkpoint import dd, timed, warm
from common.files import HashingWriter
from data_pipeline.manifest import Manifest
from data_pipeline.reading.batches import Reading
from data_pipeline.reading.loader import Loader
from training.config import RunConfig
from training.distributed import World
from training.events import EventLog
from training.parts.part import Moment, Part, Run
from training.parts.saving import Saving
from training.setup import build_engine
from training.state import parts
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


def one_round(rank: Rank, lasts: float) -> dict[str, float]:
    """Seconds of each thing, and bytes of a checkpoint; what its three saves took stands in the events.

    The second and third of them are done on a disk that is as slow as makes a save last so many steps.
    """
    world, folders = rank.world, rank.complete.folders
    never, _ = timed(lambda: rank.train(rank.interval), world)
    rank.train_and_save(1, "awaited")
    copied, _ = timed(rank.engine.snapshot, world)
    files = sorted(folders[-1].iterdir())
    figures = {"never": never, "copied": copied, "bytes": sum(path.stat().st_size for path in files)}
    if world.is_main:
        warm(files)
        figures["dd"] = dd(files, f"{folders[-1].parents[1]}/copy-{{}}", "conv=fsync")
    step = never / rank.interval
    with slowed(figures["bytes"] / world.size / (lasts * step)):
        figures["every"], _ = timed(lambda: rank.train_and_save(rank.interval, "behind"), world)
        rank.train_and_save(1, "awaited")
    return figures


@contextlib.contextmanager
def slowed(rate: float) -> Iterator[None]:
    """Has parts written at no more than so many bytes a second; what that costs the cores stays what it is."""

    class Slow(HashingWriter):
        def write(self, data) -> int:
            started = time.perf_counter()
            count = super().write(data)
            time.sleep(max(0.0, count / rate - (time.perf_counter() - started)))
            return count

    parts.HashingWriter = Slow  # type: ignore[misc]
    try:
        yield
    finally:
        parts.HashingWriter = HashingWriter  # type: ignore[misc]
