"""The ranks of a local run: torch's own launcher starts them, their files tell how they fare and how they ended.

torch.distributed.run -> launcher.local_rank -> training.worker, once per rank -> events.jsonl, logs/rank-N.log

A start has a name, which its events bear, and its logs begin where those of earlier starts end: what it is said to
have ended of is always its own.
"""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from common.json_lines import Record, append_line, examine
from common.mistakes import SENTENCE, Mistake, cut
from launcher.console import USER_MISTAKE, Broken, StageProgress, Stopped, console, duration, loss, number, say
from launcher.local_rank import PYTHON, end_with_parent
from launcher.run_folder import EVENTS, RunFolder, diary, last_step
from training import fence
from training.config import RunConfig
from training.lines import EVENT

POLL_SECONDS, AT_ONCE_SECONDS = 0.2, 0.5
STOPPED_SECONDS, STUCK_SECONDS = 1.0, 15.0
"""How long ranks may live on once one has told why the run ends: those that a signal stopped, and any."""
LAUNCH_LOG = "launch.log"
"""What torch's launcher said of the last start."""
NOTICES = ("damaged", "unlisted", "metrics lost")
"""Events that whoever watches a start is told of, in the words of their `reason`."""
KILLED = re.compile(r"exitcode\s*: -\d+ \(pid: \d+\)\s*\((SIG\w+)\)")
"""How torch's launcher tells of a rank that a signal ended."""
NOWHERE = re.compile(r".*?(rank \d+( on node \S+)? (got nowhere for|has not come within) [^;]*)")
"""How the watch over the ranks tells which of them hangs."""
LEFT = "left without a word"
"""What the watch says of a rank that was killed; torch's launcher knows by which signal."""
WAITED = re.compile(
    r"Timeout \(\d+:\d+:\d+|.*([Tt]imed out|operation timeout|(?P<rank>rank \d+( on node \S+)?) did not answer in time)"
)
"""How a wait for another rank ends, by whatever clock."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What asks for a checkpoint and a clean end."""


def run(config: RunConfig, attempt: str) -> None:
    """Starts the ranks under this name and waits for their end, showing the last metrics meanwhile.

    Raises ValueError with their sentence when they stopped on a user's mistake, Stopped when a signal ended them,
    Broken when they died.
    """
    logs = config.run_dir / "logs"
    before = {path: path.stat().st_size for path in logs.glob("rank-*.log")}
    append_line(config.run_dir / EVENTS, {"time": time.time(), "event": "launch", "attempt": attempt})
    asked: list[int] = []  # signals are noted and raise nothing, so that one may come at any time
    handlers = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in SIGNALS}
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
                env={**os.environ, fence.VARIABLE: attempt},
            )
            try:
                _watch(process, config, attempt, asked)
                if asked:
                    _stop(process, asked)
            except BaseException:
                _kill(process)
                raise
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    if process.returncode:
        events = RunFolder.read(config.run_dir).of_start(attempt)
        raise ending(events, logs, before, process.returncode, bool(asked))


def _command(config: RunConfig, folder: str) -> list[str]:
    patience = round(config.longest_minutes * 60)
    return [
        *(*PYTHON, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"),
        "--local-addr=127.0.0.1",  # else by the host's name, which not every machine can resolve
        f"--shutdown-timeout={patience}",  # a checkpoint of a large model takes more than the usual half minute
        f"--nproc-per-node={config.training.num_processes}",
        f"--log-dir={folder}",
        *("--no-python", *PYTHON, "-m", "launcher.local_rank", str(config.run_dir)),
    ]


def _stop(process: subprocess.Popen, asked: list[int]) -> None:
    """Lets the ranks save and leave; asked again while they do so, it ends them at once.

    What comes at the same time, as from a tool that signals a process and its group, is one wish.
    """
    console.print("  stopping after this step with a checkpoint (ctrl-C again stops at once)")
    process.send_signal(signal.SIGTERM)
    time.sleep(AT_ONCE_SECONDS)
    already = len(asked)
    while process.poll() is None and len(asked) == already:
        time.sleep(POLL_SECONDS)
    _kill(process)


def _kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        for member in [*psutil.Process(process.pid).children(recursive=True), process]:
            member.kill()
    process.wait()


def _watch(process: subprocess.Popen, config: RunConfig, attempt: str, asked: list[int]) -> None:
    """Shows how the run fares until it ends or somebody asks for its end."""
    steps, started, told = config.training.steps, time.time(), False
    stuck = _Stuck(config.run_dir, attempt)
    with StageProgress("starting ranks") as progress:
        while process.poll() is None and not asked:
            last = last_step(config.run_dir)
            if last.get("time", 0) >= started:  # steps of earlier starts are no progress of this one
                told = told or tell(config.run_dir, attempt)
                left = (steps - last["step"]) * last["step_seconds"]
                detail = (
                    f"loss {loss(last['loss'])}  {number(last['tokens_per_second'])} tokens/s"
                    f"  about {duration(left)} left"
                )
                progress.update(last["step"], steps, detail, title="step")
            stuck.end(process)
            time.sleep(POLL_SECONDS)
    if not told:
        tell(config.run_dir, attempt)


class _Stuck:
    """Ends ranks that do not end by themselves though one has told why the run does: stopped ones take no signal."""

    def __init__(self, run_dir: Path, attempt: str):
        self._path, self._attempt = run_dir / EVENTS, attempt
        self._size, self._since = 0, float("inf")

    def end(self, process: subprocess.Popen) -> None:
        """Looks whether the diary has grown by an error, and kills what should have ended since."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._size and self._since == float("inf"):
            self._size = size
            found = (event for event in examine(self._path, EVENT).records if event["event"] == "error")
            if any(event.get("attempt") == self._attempt for event in found):
                self._since = time.monotonic()
        lived = time.monotonic() - self._since
        if lived > STOPPED_SECONDS:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                for rank in psutil.Process(process.pid).children(recursive=True):
                    if lived > STUCK_SECONDS or rank.status() == psutil.STATUS_STOPPED:
                        rank.kill()


def tell(run_dir: Path, attempt: str) -> bool:
    """Says what a start found missing or damaged before its first step and went on without; True."""
    for event in diary(run_dir).records:
        if event.get("attempt") == attempt and event["event"] in NOTICES and "reason" in event:
            say(f"  {cut(event['reason'], SENTENCE)}")
    return True


def ending(events: list[Record], logs: Path, before: dict[Path, int], code: int, asked: bool) -> Exception:
    """Why ranks that did not finish ended, as the error to raise."""
    for event in events:
        if event["event"] == "error" and event.get("exit_code") == USER_MISTAKE and "message" in event:
            return Mistake(event["message"])
    stops = [event for event in events if event["event"] == "stop"]
    if stops and stops[-1].get("step") == 0:
        return Stopped("stopped before the first step; the same command begins again")
    if stops:
        return Stopped("stopped with a checkpoint; the same command goes on from it")
    if asked:
        return Stopped("stopped at once; the same command goes on from the last checkpoint")
    said = _said(logs, before)
    if mistake := _mistake_in(said):  # a full disk takes no event, but the log was open already
        return Mistake(mistake)
    return Broken(
        f"training broke: {_cause(events, said, logs / LAUNCH_LOG, code)}; the ranks' logs are in {logs}, "
        "and the same command goes on from the last checkpoint"
    )


def _cause(events: list[Record], said: list[list[str]], launch_log: Path, code: int) -> str:
    """Why ranks died, as far as anybody can tell, in words."""
    errors = [event["message"] for event in events if event["event"] == "error" and "message" in event]
    lines = [line for lines in [errors, *said] for line in lines]
    own = [event["message"] for event in events if event["event"] == "error" and "phase" in event]
    if told := next((message for message in own if LEFT not in message), ""):
        return cut(told, SENTENCE)
    if nowhere := next(filter(None, map(NOWHERE.match, lines)), None):
        return nowhere[1]
    if waited := [found for found in map(WAITED.match, lines) if found]:
        who = next((found["rank"] for found in waited if found["rank"]), "another")
        return (
            f"a rank waited too long for {who}, which was stopped, hangs or is overloaded (see training.hang_minutes)"
        )
    if killed := KILLED.findall(launch_log.read_text(errors="replace")):
        return f"a rank was killed by {killed[-1]}"
    if code < 0:
        return f"torch's launcher was killed by {signal.Signals(-code).name}, at which the ranks save and end"
    last = [lines[-1].strip() for lines in said if lines]
    return cut(next(iter([*errors, *last]), f"exit code {code}"), 300)


def _said(logs: Path, before: dict[Path, int]) -> list[list[str]]:
    """What each rank has said since this start, in lines, first of the one that fell silent first."""
    paths = sorted(logs.glob("rank-*.log"), key=lambda path: path.stat().st_mtime)
    texts = [path.read_bytes()[before.get(path, 0) :].decode(errors="replace") for path in paths]
    return [text.strip().splitlines() for text in texts]


def _mistake_in(said: list[list[str]]) -> str:
    """The sentence of the rank that fell silent first; empty when none has said one."""
    lines = (line for lines in said for line in reversed(lines[-10:]) if line.startswith("error: "))
    return next(lines, "").removeprefix("error: ")
