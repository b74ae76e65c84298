"""Checkpoints at their interval, and which of them are kept."""

import os
import time
from collections.abc import Sequence

from training.engine import Engine
from training.parts.part import Moment, Part, Run
from training.state.folder import delete_superseded
from training.state.saving import save


class Saving(Part):
    """Saves every `checkpoint.interval_steps` and wherever the run ends; deletes what retention gives up."""

    def __init__(self, run: Run, engine: Engine, others: Sequence[Part]):
        """`others` are told before and after each checkpoint."""
        self.run, self.engine, self.others = run, engine, others

    def reads(self, moment: Moment) -> bool:
        return moment.last or moment.due(self.run.config.checkpoint.interval_steps)

    def after_step(self, moment: Moment) -> None:
        if not self.reads(moment):
            return
        run, started = self.run, time.perf_counter()
        for part in self.others:
            part.before_save()
        writers = run.config.checkpoint.writers
        folder = save(self.engine, run.folder, moment.state, run.identity, run.world, writers)
        seconds = time.perf_counter() - started
        run.events.write("save", step=moment.step, path=os.path.relpath(folder, run.folder), seconds=seconds)
        for part in self.others:
            part.after_save(folder)
        if run.world.is_main:
            keep = run.config.checkpoint
            for gone in delete_superseded(run.folder, keep.keep, keep.keep_every_steps):
                run.events.write("delete", path=os.path.relpath(gone, run.folder))
