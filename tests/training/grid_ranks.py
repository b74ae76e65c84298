"""Ranks that train one run after the other in the same processes: python -m tests.training.grid_ranks RUN_DIR..."""

import sys
from datetime import timedelta
from pathlib import Path

from training.distributed import World, connect, disconnect, share_cores
from training.events import EventLog
from training.guards import StopRequest
from training.setup import prepare
from training.worker import read_config


def train(folder: Path, world: World) -> None:
    """Trains one run to its last step, as training.worker does."""
    config, events = read_config(folder), EventLog(folder, world.rank)
    with StopRequest() as stop, prepare(config, folder, world, events) as (trainer, loader):
        assert trainer.train(loader, stop), folder


def main(folders: list[str]) -> None:
    """Trains them all."""
    world = connect(timedelta(minutes=5))
    share_cores(world, 1)
    for folder in folders:
        train(Path(folder), world)
        if world.is_main:
            print(f"{folder} done", flush=True)
    disconnect(world)


if __name__ == "__main__":
    main(sys.argv[1:])
