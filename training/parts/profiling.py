"""What some steps spend their time on, as torch's profiler tells it (open the files in ui.perfetto.dev)."""

import torch
from torch.profiler import ProfilerActivity, profile

from common.mistakes import Mistake
from training.parts.part import Moment, Part, Run

FOLDER = "profile"
"""In a run's folder."""


class Profiling(Part):
    """Writes RUN_DIR/profile/rank-N-steps-A-B.json for the steps and ranks of `training.profile`."""

    def __init__(self, run: Run):
        """Raises ValueError for a rank that the run does not have."""
        self.run = run
        self.wanted = wanted = run.config.training.profile
        self._running: profile | None = None
        if wanted is not None and max(wanted.ranks) >= run.world.size:
            raise Mistake(
                f"training.profile.ranks: {max(wanted.ranks)} is not a rank of {run.world.size}, counted from 0"
            )

    def before_step(self, step: int) -> None:
        wanted = self.wanted
        if wanted is None or step != wanted.start or self.run.world.rank not in wanted.ranks:
            return
        on_gpu = self.run.world.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        self._running = profile(activities=activities, record_shapes=True)
        self._running.start()

    def after_step(self, moment: Moment) -> None:
        if self._running is None or self.wanted is None or not (moment.step == self.wanted.end or moment.last):
            return
        if self.run.world.device.type == "cuda":
            torch.cuda.synchronize(self.run.world.device)
        self._running.stop()
        folder = self.run.folder / FOLDER
        folder.mkdir(exist_ok=True)
        name = f"rank-{self.run.world.rank}-steps-{self.wanted.start}-{moment.step}.json"
        self._running.export_chrome_trace(str(folder / name))
        self._running = None
        self.run.events.write("profile", step=moment.step, path=f"{FOLDER}/{name}")

    def close(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None
