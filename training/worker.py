"""One rank of a run: `python -m training.worker RUN_DIR`.

    RUN_DIR/config.yaml + RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
      -> model, engine -> newest sound checkpoint -> loader -> train -> checkpoint, metrics, events

Exit status: 0 the run reached its last step; 2 a mistake of the user's, one sentence on stderr and in events.jsonl;
75 a signal (SIGTERM, SIGUSR1, SIGINT) stopped it with its state saved: start it again to go on; 76 another start has
taken the run over; else a traceback.
The last line on stderr says what went wrong. With SHARDLINE_DEBUG set in the environment, the traceback of a user's
mistake is printed above its sentence.
"""

import dataclasses
import os
import sys
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from common.mistakes import Mistake, is_mistake, sentence
from training import fence
from training.config import RunConfig
from training.distributed import World, connect, disconnect, share_cores
from training.events import EventLog
from training.guards import StopRequest
from training.hardware import execution_facts, keep_freed_memory
from training.lock import sole_writer

EXIT_DONE, EXIT_BROKEN, EXIT_MISTAKE, EXIT_STOPPED = 0, 1, 2, 75


def main(arguments: list[str] | None = None) -> int:
    """Runs one rank and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        print("usage: python -m training.worker RUN_DIR", file=sys.stderr)
        return EXIT_MISTAKE
    with StopRequest() as stop:
        return run_rank(Path(arguments[0]), stop)


def run_rank(folder: Path, stop: StopRequest) -> int:
    """Reads the config, joins the peers, trains and reports; returns the exit status."""
    events: EventLog | None = None
    attempt = ""
    try:
        config = read_config(folder)
        # Peers wait out a slow save or evaluation of rank 0, but not longer than the run itself would.
        world = connect(timedelta(minutes=config.training.hang_minutes))
        with sole_writer(folder, world) as world, watch(folder, world):
            events, attempt = EventLog(folder, world.rank, scheduler_facts()), world.attempt
            finished = train(config, folder, world, events, stop)
        disconnect(world)
        return EXIT_DONE if finished else EXIT_STOPPED
    except Exception as error:
        if isinstance(error, fence.Superseded) or fence.is_lost(folder, attempt):
            # what breaks in a superseded start is no news of the run
            print(error, file=sys.stderr, flush=True)
            return fence.SUPERSEDED
        return report(error, events)


def watch(folder: Path, world: World) -> AbstractContextManager:
    """The watch for another start of the run: on one rank of each node, for all of them would tire a file system."""
    return fence.watched(folder, world.attempt) if world.local_rank == 0 else nullcontext()


def scheduler_facts() -> dict[str, Any]:
    """Job id and restart count of a Slurm job, for its events; nothing elsewhere."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"job": int(job), "restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0)} if job else {}


def leave(code: int) -> NoReturn:
    """Ends the process with this status, whatever its threads are at.

    Where a run breaks off, threads of the process group may still be running, and they abort an interpreter that is
    torn down around them; the status would then be theirs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def report(error: Exception, events: EventLog | None) -> int:
    """Says what went wrong in events.jsonl and then, in the last lines, on stderr; returns the exit status."""
    if is_mistake(error):
        _note(events, sentence(error), EXIT_MISTAKE)
        if os.environ.get("SHARDLINE_DEBUG"):
            traceback.print_exception(error)
        print(f"error: {sentence(error)}", file=sys.stderr, flush=True)
        return EXIT_MISTAKE
    _note(events, f"{type(error).__name__}: {error}", EXIT_BROKEN)
    traceback.print_exception(error)
    return EXIT_BROKEN


def _note(events: EventLog | None, message: str, code: int) -> None:
    if events is None:
        return
    try:
        events.error(message, code)
    except OSError as error:  # a full disk is what stderr will tell of next
        print(f"events.jsonl: not written ({error.strerror})", file=sys.stderr)


def read_config(folder: Path) -> RunConfig:
    """RUN_DIR/config.yaml as a RunConfig. ValueError, one sentence, when it is missing or not valid."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise Mistake(f"{path}: no such file; start a run with `shardline train CONFIG`")
    try:
        return RunConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise Mistake(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        fault = error.errors()[0]
        raise Mistake(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


def train(config: RunConfig, folder: Path, world: World, events: EventLog, stop: StopRequest) -> bool:
    """Resumes or begins the run and trains to its last step; False when a signal to any rank stopped it."""
    started = time.perf_counter()
    share_cores(world, config.training.threads_per_process)
    if world.device.type == "cpu":
        keep_freed_memory()
    ways = execution_facts(config, world)
    facts = {"world_size": world.size, **ways, "zero_stage": config.training.zero_stage}
    events.write("start", **facts, steps=config.training.steps)
    if world.is_main:
        print(f"{world.size} rank(s): " + ", ".join(f"{name} {value}" for name, value in ways.items()), flush=True)
    # imports DeepSpeed: seconds, so only once the config is known to be good
    from training.engine import private_extensions
    from training.setup import prepare

    with private_extensions(), prepare(config, folder, world, events) as (trainer, loader):
        holdings = trainer.engine.holdings()
        if world.is_main:
            print(f"each rank holds {holdings}", flush=True)
        holds = dataclasses.asdict(holdings)
        events.write("ready", step=trainer.state.step, seconds=time.perf_counter() - started, holds=holds)
        finished = trainer.train(loader, stop)
    if finished:
        events.write("finish", step=trainer.state.step, seconds=time.perf_counter() - started)
    return finished


if __name__ == "__main__":
    leave(main())
