"""The proof on the ranks of a job, before it trains: `python -m slurm.rank --verify RUN_DIR` on every rank.

    RUN_DIR/config.yaml -> made small -> RUN_DIR/verify: trained by all ranks -> rank 0: a plain loop, and the verdict
      -> slurm/verify-ATTEMPT.txt for the job's log, an event

Ranks, nodes, mesh and network are the job's; layers are narrow and documents random, as in `shardline verify`.
Exit status: 0 it holds; 78 it does not, so that the run must not be trained like that; else as training.worker's.
"""

import json
import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import yaml

from data_pipeline.manifest import Manifest
from training.config import RunConfig
from training.distributed import World, connect, disconnect, share_cores
from training.events import EventLog
from training.state.together import on_main
from training.verify.small import small, write_documents
from training.worker import EXIT_DONE, read_config, report, scheduler_facts

EXIT_DIFFERS = 78
"""Of every rank, where training as the config says would not be what the config says."""
FOLDER = "verify"
"""In the run's folder: what is trained for the proof, until the next one."""


def main(arguments: list[str]) -> int:
    """Verifies the run in the folder that is named, as one rank of its job, and returns the exit status."""
    folder = Path(arguments[0])
    events: EventLog | None = None
    try:
        config = read_config(folder)
        world = connect(timedelta(minutes=config.training.start_minutes))
        events = EventLog(folder, world.rank, dict(scheduler_facts()))
        holds = verify(config, folder, world, events)
        disconnect(world)
        return EXIT_DONE if holds else EXIT_DIFFERS
    except Exception as error:
        return report(error, events)


def verify(config: RunConfig, folder: Path, world: World, events: EventLog) -> bool:
    """Whether a small run trains on these ranks as a plain loop does; all ranks call it together."""
    from training.engine import private_extensions  # imports DeepSpeed: seconds
    from training.verify.ranks import train

    started = time.perf_counter()
    place = folder / FOLDER
    made = on_main(world, lambda: _prepare(config, place, world.size))
    manifest = Manifest.load(made.data.path)
    share_cores(world, config.training.threads_per_process)
    with private_extensions():
        lines = train(made, manifest, place, world.grouped(**made.parallel.axes))
    return on_main(world, lambda: _judge(made, manifest, place, lines, world, events, started))


def _prepare(config: RunConfig, place: Path, num_ranks: int) -> RunConfig:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    made = small(config, place / "data", num_ranks)
    write_documents(place / "data", made.training.global_batch_size)
    (place / "config.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    return made


def _judge(
    made: RunConfig, manifest: Manifest, place: Path, lines: dict, world: World, events: EventLog, started: float
) -> bool:
    from training.verify.verdict import LINES, Judge, in_lines

    (place / LINES).write_text(json.dumps(lines))
    verdict = Judge(manifest, world.size, world.device).of(made.name, made, place)
    seconds = time.perf_counter() - started
    worst = verdict.worst
    where = f"{worst.what} differs by {worst.worst:.2g} from the plain loop's, {worst.allowed:.2g} is allowed"
    words = [
        *in_lines(verdict),
        f"verified on {world.size} ranks in {seconds:.0f} s: it holds"
        if verdict.holds
        else f"verify: {where} ({worst.where}); nothing was trained, compare with 'shardline verify' on one node",
    ]
    name = f"verify-{os.environ.get('SHARDLINE_ATTEMPT', 'lone')}.txt"
    (place.parent / "slurm" / name).write_text("\n".join(words) + "\n")
    findings = {each.what: each.worst for each in verdict.findings}
    events.write("verify", holds=verdict.holds, seconds=seconds, differences=findings, message=words[-1])
    return verdict.holds
