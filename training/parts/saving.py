"""Checkpoints at their interval, written behind the steps, and which of them are kept.

after_step: the one before is over? -> event, after_save      due? -> before_save, snapshot -> (thread) commit, deletes
"""

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from training.engine import Engine
from training.local.partners import Partners
from training.local.saving import LocalSaves
from training.parts.part import Moment, Part, Run
from training.phases import Phase
from training.probe import Probe
from training.state.behind import Behind
from training.state.folder import delete_superseded, step_name
from training.state.identity import RunState
from training.state.saving import commit
from training.state.snapshot import Snapshot
from training.state.together import on_main

LOG = logging.getLogger("training.parts.saving")


@dataclasses.dataclass(frozen=True)
class Saved:
    """What came of a save."""

    folder: Path
    """The checkpoint."""
    seconds: float
    """From when it was due to when it was complete."""
    given_up: list[Path]
    """Checkpoints that it made superfluous; they are deleted."""


@dataclasses.dataclass(frozen=True)
class Save:
    """A save that has begun."""

    step: int
    """Steps done then."""
    event: str
    """What it is called in events: `save`, or `local save` for one on the nodes' own disks."""
    due: float
    """When, in seconds since 1970."""
    stalled: float
    """Seconds that the steps waited for it."""


class Saving(Part):
    """Saves every `checkpoint.interval_steps` and wherever the run ends, and every `checkpoint.local_interval_steps` on
    the nodes' own disks; deletes what retention gives up.

    Steps wait for the copies of a save and for the save before it, if that is not complete yet; where the run ends or
    `checkpoint.in_background` is false they wait for all of it. What goes wrong behind them is raised at a later step,
    the same on every rank.
    """

    def __init__(self, run: Run, engine: Engine, others: Sequence[Part], probe: Probe | None = None):
        """`others` are told before and after each checkpoint, which keeps what comes of the `probe`."""
        self.run, self.engine, self.others, self._probe = run, engine, others, probe
        self._behind: Behind[Saved]  # from `begin` on, when all ranks are there
        self._local: LocalSaves | None = None
        self._save: Save | None = None

    def reads(self, moment: Moment) -> bool:
        return self._is_shared(moment) or moment.due(self.run.config.checkpoint.local_interval_steps)

    def _is_shared(self, moment: Moment) -> bool:
        return moment.last or moment.due(self.run.config.checkpoint.interval_steps)

    def begin(self) -> None:
        config, local = self.run.config, self.run.local
        patience, minutes = timedelta(minutes=config.training.start_minutes), config.phase_minutes[Phase.SAVE]
        self._behind = Behind(self.run.world, "saver", minutes, patience)
        if local is None:
            return
        world = self._behind.world
        partners = Partners.connect(local.nodes, world, patience, minutes)
        self._local = LocalSaves(local, partners, world, self.run.folder)
        if partners is None:
            reason = "there is one node, so local checkpoints have no copies on another: with it they are lost"
            self.run.events.write("no copies", reason=reason)
            if world.is_main:
                LOG.warning(reason)

    def after_step(self, moment: Moment) -> None:
        if self._save is not None and self._behind.is_over():
            self._complete(self._save)
        if not self.reads(moment):
            return
        started = time.perf_counter()
        self.settle()
        for part in self.others:
            part.before_save()
        state = moment.state if self._probe is None else dataclasses.replace(moment.state, probe=self._probe())
        snapshot, words = self.engine.snapshot(), f"phase {Phase.SAVE}, the writing of {step_name(moment.step)}"
        shared = self._is_shared(moment)
        commit = self._commit if shared else self._commit_locally
        self.run.world.watch.goes_behind(Phase.SAVE)
        self._behind.begin(words, lambda: commit(snapshot, state, started))
        stalled, event = time.perf_counter() - started, "save" if shared else "local save"
        self._save = Save(moment.step, event, time.time() - stalled, stalled)
        if moment.last or not self.run.config.checkpoint.in_background:
            self._complete(self._save, awaited=True)

    def _commit(self, snapshot: Snapshot, state: RunState, started: float) -> Saved:
        run, world, keep = self.run, self._behind.world, self.run.config.checkpoint
        folder = commit(snapshot, run.folder, state, run.identity, world, keep.writers)
        seconds = time.perf_counter() - started
        gone = on_main(world, lambda: delete_superseded(run.folder, keep.keep, keep.keep_every_steps))
        return Saved(folder, seconds, gone)

    def _commit_locally(self, snapshot: Snapshot, state: RunState, started: float) -> Saved:
        assert self._local is not None, "nothing is saved locally"
        folder = self._local.commit(snapshot, state, self.run.identity)
        return Saved(folder, time.perf_counter() - started, [])

    def _complete(self, save: Save, *, awaited: bool = False) -> None:
        """Takes what came of a save, once it is there; `awaited` says that the steps wait for all of it."""
        self._save = None
        saved = self._outcome()
        self._note(save, saved, saved.seconds if awaited else save.stalled)
        for part in self.others:
            part.after_save(saved.folder)

    def _outcome(self) -> Saved:
        saved = self._behind.outcome()
        self.run.world.watch.goes_behind(None)
        return saved

    def _note(self, save: Save, saved: Saved, stalled: float) -> None:
        inside = saved.folder.is_relative_to(self.run.folder)
        path, seconds = os.path.relpath(saved.folder, self.run.folder) if inside else str(saved.folder), saved.seconds
        times = {"due": save.due, "seconds": seconds, "stalled_seconds": stalled}
        self.run.events.write(save.event, step=save.step, path=path, **times)
        for gone in saved.given_up:
            self.run.events.write("delete", path=os.path.relpath(gone, self.run.folder))

    def settle(self) -> None:
        """Returns once the save that goes on, if any, is complete; all ranks call it together."""
        if self._save is not None:
            self.run.world.watch.beat(Phase.SAVE)
            self._complete(self._save)

    def close(self) -> None:
        if self._save is not None:
            self._break_off(self._save)
        self._behind.close()
        if self._local is not None:
            self._local.close()

    def _break_off(self, save: Save) -> None:
        """Lets a save come to its end though the run has broken off for a reason of its own, which is to be told."""
        try:
            self._note(save, self._outcome(), save.stalled)
        except Exception as error:
            LOG.warning(f"{step_name(save.step)} was being written when the run broke off, and failed: {error}")
