"""Trains small runs on the real engine, one after another: python -m training.verify.ranks DATASET FOLDER...

Each FOLDER has a config.yaml; it gets a checkpoint of each step, and `lines.json`: losses, norms, and what the rank
computed with. All ranks are started with the usual variables, by whatever starts ranks.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from data_pipeline.manifest import Manifest
from training.config import RunConfig
from training.distributed import World, connect, disconnect, share_cores
from training.engine import private_extensions
from training.hardware import execution_facts
from training.setup import build_engine, identify, vocabulary_size
from training.state.identity import RunState
from training.state.saving import save
from training.step import train_step
from training.verify.plain import loader_of
from training.verify.small import LR
from training.verify.verdict import LINES
from training.worker import leave, read_config, report


def train(config: RunConfig, manifest: Manifest, folder: Path, world: World) -> dict[str, Any]:
    """Trains a run to its last step and saves each."""
    engine = build_engine(config, vocabulary_size(config, manifest), world)
    identity = identify(config, manifest, world.size)
    losses, norms = [], []
    with loader_of(config, manifest, world.mesh.data.rank, world.mesh.data.size) as loader:
        for step in range(1, config.training.steps + 1):
            result = train_step(engine, next(loader), LR, world)
            losses.append(result.loss)
            norms.append(result.grad_norm)
            save(engine, folder, RunState(step, 0, 0), identity, world)
    facts = execution_facts(config, world) | {"optimizer": engine.holdings().optimizer}
    engine.close()
    return {"losses": losses, "norms": norms, **facts}


def main(data: str, *folders: str) -> int:
    """Trains them all."""
    world = connect(timedelta(minutes=5))
    manifest = Manifest.load(data)
    with private_extensions():
        for folder in map(Path, folders):
            config = read_config(folder)
            share_cores(world, config.training.threads_per_process or 1)
            lines = train(config, manifest, folder, world.grouped(**config.parallel.axes))
            if world.is_main:
                (folder / LINES).write_text(json.dumps(lines))
    disconnect(world)
    return 0


if __name__ == "__main__":
    try:
        leave(main(*sys.argv[1:]))
    except Exception as error:
        leave(report(error, None))
