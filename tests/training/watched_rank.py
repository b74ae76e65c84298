"""A rank on a GPU whose every wait for it is written down: python -m tests.training.watched_rank RUN_DIR FILE

FILE gets, as JSON, by step the places that waited: the innermost frame outside torch of each synchronizing call, as
torch itself reports them (torch.cuda.set_sync_debug_mode).
"""

import json
import sys
import traceback
import warnings
from collections import defaultdict
from pathlib import Path

import torch

from tests.training.runs import REPOSITORY
from training import worker
from training.loop import Trainer


def main(folder: str, output: str) -> None:
    """Runs the worker to its end."""
    places: dict[int, list[str]] = defaultdict(list)
    step = 0

    def note(message, category, *_, **__):
        if "synchroniz" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename]
        inner = next(frame for frame in reversed(frames) if not frame.filename.endswith("warnings.py"))
        shown = inner.filename.removeprefix(f"{REPOSITORY}/").split("site-packages/")[-1]
        places[step].append(f"{shown}:{inner.lineno} {inner.name}")

    advance = Trainer._advance

    def counted(self, feeder):
        nonlocal step
        step = self.state.step + 1
        warnings.simplefilter("always")
        warnings.showwarning = note  # only now: the worker had sent warnings to its log
        torch.cuda.set_sync_debug_mode("warn")
        torch.ones(1, device="cuda").item()  # one that must be seen
        try:
            advance(self, feeder)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    Trainer._advance = counted
    status = worker.main([folder])
    Path(output).write_text(json.dumps(places))
    worker.leave(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
