"""One rank of a run: `python -m training.worker RUN_DIR`.

    RUN_DIR/config.yaml + RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
      -> model, engine -> newest sound checkpoint -> loader -> train -> checkpoint, metrics, events

Exit status: 0 the run reached its last step; 2 a mistake of the user's, one sentence on stderr and in events.jsonl;
75 a signal (SIGTERM, SIGUSR1, SIGINT) stopped it with its state saved: start it again to go on; 76 another start has
taken the run over; else a traceback. A loss that is no number is a mistake (2): the same data would give it again.
The last line on stderr says what went wrong. With SHARDLINE_DEBUG set in the environment, the traceback of a user's
mistake is printed above its sentence.
"""

import dataclasses
import gc
import logging
import os
import sys
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
import yaml
from pydantic import ValidationError

from common.files import read_file
from common.mistakes import Mistake, cut, is_mistake, sentence, shown
from common.plain_yaml import read_plain
from training import fence, log
from training.config import RunConfig
from training.distributed import World, connect, disconnect, set_timeout, share_cores
from training.events import EventLog
from training.guards import BROKEN, StopRequest
from training.hardware import execution_facts, keep_freed_memory, network_settings
from training.lock import sole_writer
from training.mesh import sharing
from training.phases import Phase
from training.plane import PeerLost
from training.state.identity import RunState
from training.watch import Watch
from training.whereabouts import patience

EXIT_DONE, EXIT_BROKEN, EXIT_MISTAKE, EXIT_STOPPED = 0, BROKEN, 2, 75
OTHERS_SPEAK_FIRST, STAGGER, STAGGERED = 2.0, 0.05, 100
"""Seconds that a rank which lost a peer waits for what the peer has to say, and those between ranks, up to so many.

A rank needs about a second from its error to its event on a busy file system, and of a thousand that lost it one is to
tell of that, not all.
"""
FLIGHT_RECORDER = {
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}
"""torch's record of the last collectives, written when one of nccl's does not end in time (a step of a model of 80
layers has some 500 of them). The first two are the same by a newer and an older name."""
LOG = logging.getLogger("training.worker")


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
    events: EventLog | None = None  # there once the run is ours
    early, attempt, watch = diary(folder, os.environ.get(fence.VARIABLE, "")), "", Watch()
    try:
        config = read_config(folder)
        record_flight(folder)
        if config.parallel.num_sharing > 1:
            # CUDA starts kernels in the order of their calls then, so that what is sent overlaps what is computed
            os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        watch = Watch(early.rank, config.phase_minutes, early, folder / "logs" / f"flight-rank-{early.rank}")
        watch.beat(Phase.RENDEZVOUS)
        seconds = patience(config.phase_minutes[Phase.RENDEZVOUS])
        world = connect(timedelta(seconds=seconds), watch=watch, **config.parallel.axes)
        set_timeout(world, timedelta(minutes=max(config.phase_minutes.values())))  # until the first step is over
        log.set_up(world.rank)
        with sole_writer(folder, world) as world, fenced(folder, world):
            attempt = watch.attempt = world.attempt
            events = watch.events = diary(folder, attempt)
            finished = train(config, folder, world, events, stop)
        disconnect(world)
        watch.leave()
        return EXIT_DONE if finished else EXIT_STOPPED
    except Exception as error:
        if isinstance(error, fence.Superseded) or fence.is_lost(folder, attempt):
            # what breaks in a superseded start is no news of the run
            print(error, file=sys.stderr, flush=True)
            return fence.SUPERSEDED
        return report(error, events or (None if is_mistake(error) else early), watch)
    finally:
        watch.stop()


def diary(folder: Path, attempt: str) -> EventLog:
    """Where this rank writes what happens."""
    rank = os.environ.get("RANK", "")
    return EventLog(folder, int(rank) if rank.isdecimal() else 0, {"attempt": attempt, **scheduler_facts()})


def record_flight(folder: Path) -> None:
    """Has torch record what collectives ran, and write it to logs/ when one hangs; the environment comes first."""
    dump = f"{folder.absolute() / 'logs' / 'flight-rank-'}"
    settings = FLIGHT_RECORDER | {"TORCH_FR_DUMP_TEMP_FILE": dump, "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": dump}
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def fenced(folder: Path, world: World) -> AbstractContextManager:
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


def report(error: Exception, events: EventLog | None, watch: Watch | None = None) -> int:
    """Says what went wrong in events.jsonl, to the other ranks and in the last lines on stderr; returns the status."""
    watch = watch or Watch()
    if is_mistake(error):
        words = sentence(error)
        _note(events, words, EXIT_MISTAKE, watch.place.facts)
        watch.end_all(words, EXIT_MISTAKE)
        if os.environ.get("SHARDLINE_DEBUG"):
            traceback.print_exception(error)
        print(f"error: {words}", file=sys.stderr, flush=True)
        return EXIT_MISTAKE
    if is_of_a_peer(error):
        return _report_peer(error, events, watch)
    place = watch.place
    words, where = f"{type(error).__name__}: {error}", f" ({place.name}, in {place.at})" if place.phase else ""
    _note(events, words, EXIT_BROKEN, place.facts, where)
    watch.end_all(words + where, EXIT_BROKEN)
    traceback.print_exception(error)
    if place.phase:
        print(f"{place.name} broke in {place.at}", file=sys.stderr, flush=True)
    return EXIT_BROKEN


def is_of_a_peer(error: BaseException) -> bool:
    """Whether it says that another rank left or hangs, which has a cause elsewhere."""
    if isinstance(error, PeerLost | dist.DistError | ConnectionError):
        return True
    return type(error) is RuntimeError and any(word in str(error).lower() for word in ("gloo", "nccl"))


def _report_peer(error: Exception, events: EventLog | None, watch: Watch) -> int:
    """Ends with what another rank has broken with; tells of a lost peer where nobody says why, one rank for all."""
    if heard := watch.heard(OTHERS_SPEAK_FIRST + STAGGER * min(watch.place.rank, STAGGERED)):
        words, code = heard
        whose = "error" if code == EXIT_MISTAKE else "another rank broke"
        print(f"{whose}: {words}", file=sys.stderr, flush=True)
        return code
    traceback.print_exception(error)
    at = f", in {watch.place.at}" if watch.place.phase else ""
    words = f"another rank has left or hangs: {' '.join(str(error).split())}{at}"
    if events is not None and not events.has_been_told():
        _note(events, words, EXIT_BROKEN, {})
    watch.end_all(words, EXIT_BROKEN)
    print(words, file=sys.stderr, flush=True)
    return EXIT_BROKEN


def _note(events: EventLog | None, message: str, code: int, facts: dict[str, Any], where: str = "") -> None:
    if events is None:
        return
    try:
        events.error(message, code, facts, where)
    except OSError as error:  # a full disk is what stderr will tell of next
        print(f"events.jsonl: not written ({error.strerror})", file=sys.stderr)


def read_config(folder: Path) -> RunConfig:
    """RUN_DIR/config.yaml as a RunConfig. ValueError, one sentence, when it is missing or not valid."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise Mistake(f"{path}: no such file; start a run with `shardline train CONFIG`")
    try:
        return RunConfig.model_validate(read_plain(read_file(path).decode()))
    except UnicodeDecodeError as error:
        raise Mistake(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise Mistake(f"{path}: not valid YAML ({cut(' '.join(str(error).split()), 200)})") from None
    except ValidationError as error:
        fault = error.errors()[0]
        key = cut(".".join(map(str, fault["loc"])))
        found = "" if fault["type"] == "missing" else f"found {shown(fault['input'])}; "
        raise Mistake(f"{path}: {key}: {found}{fault['msg']}") from None


def train(config: RunConfig, folder: Path, world: World, events: EventLog, stop: StopRequest) -> bool:
    """Resumes or begins the run and trains to its last step; False when a signal to any rank stopped it."""
    started = time.perf_counter()
    share_cores(world, config.training.threads_per_process)
    ways = execution_facts(config, world)
    network = network_settings()
    axes = config.parallel.axes
    facts = {"world_size": world.size, **axes, **ways, "zero_stage": config.training.zero_stage, "network": network}
    events.write("start", **facts, steps=config.training.steps)
    if world.is_main:
        listed = ", ".join(f"{name} {value}" for name, value in ways.items())
        LOG.info("%d rank(s)%s: %s", world.size, sharing(**axes), listed)
        LOG.info("network: %s", ", ".join(f"{name}={value}" for name, value in network.items()) or "nothing is set")
    world.watch.beat(Phase.IMPORT)
    # imports DeepSpeed: seconds, so only once the config is known to be good
    from training.engine import private_extensions

    with private_extensions():
        while (state := _train_once(config, folder, world, events, stop, started)) is None:
            gc.collect()  # what an engine is made of refers to itself
    finished = state.step >= config.training.steps
    if finished:
        events.write("finish", step=state.step, seconds=time.perf_counter() - started)
    return finished


def _train_once(
    config: RunConfig, folder: Path, world: World, events: EventLog, stop: StopRequest, started: float
) -> RunState | None:
    """Resumes or begins the run and trains on: where it stands then, None when it is to go back and resume again."""
    from training.jumps import RolledBack
    from training.setup import prepare

    with prepare(config, folder, world, events) as (trainer, loader):
        holdings = trainer.engine.holdings()
        if world.is_main:
            LOG.info("each rank holds %s", holdings)
        holds = dataclasses.asdict(holdings)
        events.write("ready", step=trainer.state.step, seconds=time.perf_counter() - started, holds=holds)
        if world.device.type == "cpu":
            keep_freed_memory()
        try:
            trainer.train(loader, stop)
            return trainer.state
        except RolledBack as jump:
            LOG.warning("%s", jump)
            trainer.engine.close()
            set_timeout(world, timedelta(minutes=config.training.start_minutes))
            world.watch.beat(Phase.LOAD)
    return None


if __name__ == "__main__":
    leave(main())
