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
from training.distributed import World, connect, disconnect, share_cores
from training.events import EventLog
from training.guards import BROKEN, HangWatch, StopRequest
from training.hardware import execution_facts, keep_freed_memory, network_settings
from training.lock import sole_writer
from training.mesh import sharing
from training.plane import PeerLost

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
    events: EventLog | None = None
    attempt = ""
    try:
        config = read_config(folder)
        record_flight(folder)
        if config.parallel.num_sharing > 1:
            # CUDA starts kernels in the order of their calls then, so that what is sent overlaps what is computed
            os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        world = connect(timedelta(minutes=config.training.start_minutes), **config.parallel.axes)
        log.set_up(world.rank)
        with sole_writer(folder, world) as world, watch(folder, world):
            attempt = world.attempt
            events = EventLog(folder, world.rank, {"attempt": attempt, **scheduler_facts()})
            finished = train(config, folder, world, events, stop)
        disconnect(world)
        return EXIT_DONE if finished else EXIT_STOPPED
    except Exception as error:
        if isinstance(error, fence.Superseded) or fence.is_lost(folder, attempt):
            # what breaks in a superseded start is no news of the run
            print(error, file=sys.stderr, flush=True)
            return fence.SUPERSEDED
        return report(error, events)


def record_flight(folder: Path) -> None:
    """Has torch record what collectives ran, and write it to logs/ when one hangs; the environment comes first."""
    dump = f"{folder.absolute() / 'logs' / 'flight-rank-'}"
    settings = FLIGHT_RECORDER | {"TORCH_FR_DUMP_TEMP_FILE": dump, "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": dump}
    for name, value in settings.items():
        os.environ.setdefault(name, value)


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
    if is_of_a_peer(error):
        return _report_peer(error, events)
    _note(events, f"{type(error).__name__}: {error}", EXIT_BROKEN)
    traceback.print_exception(error)
    return EXIT_BROKEN


def is_of_a_peer(error: BaseException) -> bool:
    """Whether it says that another rank left or hangs, which has a cause elsewhere."""
    if isinstance(error, PeerLost | dist.DistError | ConnectionError):
        return True
    return type(error) is RuntimeError and any(word in str(error).lower() for word in ("gloo", "nccl"))


def _report_peer(error: Exception, events: EventLog | None) -> int:
    """Tells of a lost peer, unless a rank has told of something since: that is why, or one such line is enough."""
    traceback.print_exception(error)
    sentence = f"another rank has left or hangs: {' '.join(str(error).split())}"
    if events is not None:
        time.sleep(OTHERS_SPEAK_FIRST + STAGGER * min(events.rank, STAGGERED))
        if not events.has_been_told():
            _note(events, sentence, EXIT_BROKEN)
    print(sentence, file=sys.stderr, flush=True)
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
    starting = HangWatch(config.training.start_minutes, world.rank, lambda words: events.error(words, EXIT_BROKEN))
    starting.beat("starting")
    try:
        # imports DeepSpeed: seconds, so only once the config is known to be good
        from training.engine import private_extensions
        from training.setup import prepare

        with private_extensions(), prepare(config, folder, world, events) as (trainer, loader):
            holdings = trainer.engine.holdings()
            if world.is_main:
                LOG.info("each rank holds %s", holdings)
            holds = dataclasses.asdict(holdings)
            events.write("ready", step=trainer.state.step, seconds=time.perf_counter() - started, holds=holds)
            if world.device.type == "cpu":
                keep_freed_memory()
            starting.stop()  # the trainer watches itself
            finished = trainer.train(loader, stop)
    finally:
        starting.stop()
    if finished:
        events.write("finish", step=trainer.state.step, seconds=time.perf_counter() - started)
    return finished


if __name__ == "__main__":
    leave(main())
