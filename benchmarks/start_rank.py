"""One rank of `benchmarks.start`: starts a run as `training.worker` does and says what its start took.

    python -m benchmarks.start_rank run RUN_DIR     joins its peers and prepares the run, new or resumed
    python -m benchmarks.start_rank whole RUN_DIR   draws the whole model in fp32 and nothing else

Prints one line of JSON: bytes resident when all is imported, the most that came on top, and seconds.
"""

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from benchmarks.resident import resident
from data_pipeline.manifest import Manifest
from training.config import RunConfig
from training.distributed import connect, disconnect, share_cores
from training.events import EventLog
from training.setup import Transformer, prepare
from training.worker import leave, read_config


def measure(start: Callable[[], None]) -> None:
    """Prints what `start` takes."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
    imported, began = resident("VmRSS"), time.perf_counter()
    start()
    facts = {"imported": imported, "peak": resident("VmHWM") - imported, "seconds": time.perf_counter() - began}
    print(json.dumps(facts), flush=True)


def run(config: RunConfig, folder: Path) -> None:
    """A rank as the worker starts it, up to its first step."""
    world = connect(timedelta(minutes=config.training.hang_minutes))
    share_cores(world, config.training.threads_per_process)
    world.max([0.0])  # connects the peers

    def start() -> None:
        with prepare(config, folder, world, EventLog(folder, world.rank)):
            world.max([0.0])  # ready when all are

    measure(start)
    disconnect(world)


def whole(config: RunConfig) -> None:
    """The model on the host, as a rank without peers would make it."""
    vocab_size = Manifest.load(config.data.path).vocab_size
    models = []
    measure(lambda: models.append(Transformer(config.model, vocab_size, config.seed)))


def main() -> int:
    """Starts what is asked for."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    config = read_config(folder)
    if kind == "whole":
        whole(config)
    else:
        run(config, folder)
    return 0


if __name__ == "__main__":
    leave(main())
