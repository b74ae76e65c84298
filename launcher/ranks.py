"""The ranks of a local run: torch's own launcher starts them, their files tell how they fare and how they ended.

torch.distributed.run -> launcher.local_rank -> training.worker, once per rank -> events.jsonl, logs/rank-N.log
"""

import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from common.json_lines import read_lines
from common.mistakes import Mistake
from launcher.console import USER_MISTAKE, Broken, StageProgress, Stopped, console, duration, number
from launcher.local_rank import PYTHON, end_with_parent
from training.config import RunConfig

POLL_SECONDS = 0.2
LAUNCH_LOG = "launch.log"
"""What torch's launcher said of the last start."""
KILLED = re.compile(r"exitcode\s*: -\d+ \(pid: \d+\)\s*\((SIG\w+)\)")
"""How torch's launcher tells of a rank that a signal ended."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What asks for a checkpoint and a clean end."""


class _Asked(BaseException):
    """Somebody asked for the end of the run."""


def run(config: RunConfig, last_step: Callable[[], dict[str, Any]]) -> None:
    """Starts the ranks and waits for their end, showing `last_step()`'s metrics meanwhile.

    Raises ValueError with their sentence when they stopped on a user's mistake, Stopped when a signal ended them,
    Broken when they died.
    """
    logs, started = config.run_dir / "logs", time.time()
    num_events = len(read_lines(config.run_dir / "events.jsonl"))
    asked = False
    handlers = {number: signal.signal(number, _ask) for number in SIGNALS}
    try:
        # torch's launcher leaves a folder behind each start; where it is told to, it goes with ours
        scratch = tempfile.TemporaryDirectory(prefix="shardline-launch-", ignore_cleanup_errors=True)
        with scratch as folder, (logs / LAUNCH_LOG).open("wb") as log:
            process = subprocess.Popen(
                _command(config, folder),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
            try:
                _watch(process, config, last_step)
            except _Asked:
                asked = True
                _stop(process)
            except BaseException:
                _kill(process)
                raise
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    if process.returncode:
        events = read_lines(config.run_dir / "events.jsonl")[num_events:]
        raise _ending(events, logs, started, process.returncode, asked)


def _ask(*_: int | FrameType | None) -> None:
    raise _Asked


def _command(config: RunConfig, folder: str) -> list[str]:
    patience = round(config.training.hang_minutes * 60)
    return [
        *(*PYTHON, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"),
        "--local-addr=127.0.0.1",  # else by the host's name, which not every machine can resolve
        f"--shutdown-timeout={patience}",  # a checkpoint of a large model takes more than the usual half minute
        f"--nproc-per-node={config.training.num_processes}",
        f"--log-dir={folder}",
        *("--no-python", *PYTHON, "-m", "launcher.local_rank", str(config.run_dir)),
    ]


def _stop(process: subprocess.Popen) -> None:
    """Lets the ranks save and leave; asked again while they do so, it ends them at once."""
    try:
        console.print("  stopping after this step with a checkpoint (ctrl-C again stops at once)")
        process.send_signal(signal.SIGTERM)
        process.wait()
    except _Asked:
        _kill(process)


def _kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        for member in [*psutil.Process(process.pid).children(recursive=True), process]:
            member.kill()
    process.wait()


def _watch(process: subprocess.Popen, config: RunConfig, last_step: Callable[[], dict[str, Any]]) -> None:
    steps = config.training.steps
    with StageProgress("starting ranks") as progress:
        while process.poll() is None:
            if last := last_step():
                left = (steps - last["step"]) * last["step_seconds"]
                detail = (
                    f"loss {last['loss']:.3f}  {number(last['tokens_per_second'])} tokens/s"
                    f"  about {duration(left)} left"
                )
                progress.update(last["step"], steps, detail, title="step")
            time.sleep(POLL_SECONDS)


def _ending(events: list[dict[str, Any]], logs: Path, started: float, code: int, asked: bool) -> Exception:
    """Why ranks that did not finish ended, as the error to raise."""
    for event in events:
        if event["event"] == "error" and event.get("exit_code") == USER_MISTAKE:
            return Mistake(event["message"])
    if any(event["event"] == "stop" for event in events):
        return Stopped("stopped with a checkpoint; the same command goes on from it")
    if asked:
        return Stopped("stopped at once; the same command goes on from the last checkpoint")
    words = _last_words(logs, started)
    if words.startswith("error: "):  # a full disk takes no event, but the log was open already
        return Mistake(words.removeprefix("error: "))
    killed = KILLED.findall((logs / LAUNCH_LOG).read_text(errors="replace"))
    reason = f"a rank was killed by {killed[-1]}" if killed else words or f"exit code {code}"
    return Broken(
        f"training broke: {reason}; the ranks' logs are in {logs}, "
        "and the same command goes on from the last checkpoint"
    )


def _last_words(logs: Path, since: float) -> str:
    """The sentence, or else the last line, of the log that ended first: by the rank that failed first.

    Empty when none spoke since then.
    """
    times = sorted((path.stat().st_mtime, path) for path in logs.glob("rank-*.log"))
    for lines in [path.read_text(errors="replace").strip().splitlines() for t, path in times if t >= since]:
        if lines:
            return next((line for line in reversed(lines[-10:]) if line.startswith("error: ")), lines[-1].strip())
    return ""
