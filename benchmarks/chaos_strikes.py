"""One start of a run as seen from outside: how far it is, and what can be done to it.

    Start(config) -> processes, lines of metrics, folders of checkpoints -> moments -> signals, a full disk -> its end

Nothing here knows how a run works inside: who is struck is found among the processes, when is told by its files.
"""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos_plan import EVALUATION, INTERVAL, Strike
from common.json_lines import read_lines
from launcher.local_rank import end_with_parent
from training.state.folder import DAMAGED, complete_checkpoints, named_latest, step_name, step_of

POLL_SECONDS = 0.003
PATIENCE = 600
"""Seconds after which a start that goes nowhere is called a hang."""
ROOT = Path(__file__).resolve().parents[1]


class Start:
    """A `shardline train CONFIG` under way; what it says goes to `log`."""

    def __init__(self, config: Path, run: Path, log: Path):
        self.run, self.log, self.began = run, log, time.time()
        self._read: tuple[Any, list[dict[str, Any]]] = (None, [])
        self._writing: set[str] = set()
        command = [sys.executable, "-P", "-m", "launcher.cli", "train", str(config)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_as_from_a_terminal,
                cwd=ROOT,
                env=environment,
            )
        self._members = {self.process.pid: psutil.Process(self.process.pid)}

    @property
    def is_over(self) -> bool:
        """Whether the command has ended; its ranks may be about to."""
        return self.process.poll() is not None

    def members(self) -> list[psutil.Process]:
        """All processes that this start has made so far and that are there."""
        root = self._members[self.process.pid]  # while it is there, all others are below it
        for parent in [root] if _is_alive(root) else list(self._members.values()):
            with contextlib.suppress(psutil.Error):
                self._members |= {child.pid: child for child in parent.children(recursive=True)}
        return [member for member in self._members.values() if _is_alive(member)]

    def targets(self, name: str) -> list[psutil.Process]:
        """Processes of a target of the plan; empty while they are not there."""
        if name == "launcher":
            return [self._members[self.process.pid]]
        # the first of a name is the one: what it forks looks like it until it becomes something else
        named = {_role(member): member for member in reversed(self.members())}
        wanted = ["rank 0", "rank 1"] if name == "both ranks" else [name]
        return [named[each] for each in wanted] if all(each in named for each in wanted) else []

    def count(self, moment: str) -> int:
        """How many moments of that name there have been since this start."""
        if moment == "commit":
            home = self.run / "checkpoints"
            names = [path.name for path in home.iterdir()] if home.is_dir() else []
            self._writing |= {name for name in names if name.startswith(".tmp-") and "step-" in name}
            return len(self._writing)
        every = {"steps": 1, "snapshot": INTERVAL, "evaluation": EVALUATION}[moment]
        return sum(line["step"] % every == 0 for line in self._lines() if line.get("time", 0) >= self.began)

    def _lines(self) -> list[dict[str, Any]]:
        """Lines of training; read again where the file has changed."""
        path = self.run / "metrics.jsonl"
        try:
            now = path.stat()
        except FileNotFoundError:
            return []
        key = (now.st_ino, now.st_size)
        if key != self._read[0]:
            self._read = key, training_lines(self.run)
        return self._read[1]

    def until(self, strike: Strike) -> bool:
        """Waits for the moment of a strike and a while more; False when the start is over before."""
        while not self.is_over:
            if self.targets(strike.target) if strike.moment == "start" else self.count(strike.moment) >= strike.nth:
                time.sleep(strike.delay)
                return not self.is_over
            time.sleep(POLL_SECONDS)
        return False

    def signal(self, strike: Strike) -> bool:
        """Sends the signal of a strike; False where nobody is there to get it."""
        self.members()  # who is there is known even when their parent is gone
        found = self.targets(strike.target)
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.Signals[strike.deed])
        return bool(found)

    def finish(self) -> int | None:
        """Exit status once all its processes have ended; None when they do not, and are killed."""
        deadline = time.monotonic() + PATIENCE
        while alive := self.members():
            if time.monotonic() > deadline:
                for member in alive:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
                self.process.wait()
                return None
            self.process.poll()
            time.sleep(0.2)
        return self.process.wait()


def _as_from_a_terminal() -> None:
    """What is started ends with us, and hears of ctrl-C also where we run in the background."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _role(process: psutil.Process) -> str:
    """Which target of the plan a process is; empty for others."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        if "torch.distributed.run" in words:
            return "torch's launcher"
        if "training.worker" in words or "launcher.local_rank" in words:
            return f"rank {process.environ().get('RANK', '')}"
    return ""


def training_lines(run: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics of training steps."""
    return [line for line in read_lines(run / "metrics.jsonl") if {"loss", "step"} <= line.keys()]


def saved_step(run: Path) -> int:
    """Step that the run would go on from by the names of its checkpoints, 0 for none."""
    steps, named = [step_of(path) for path in complete_checkpoints(run)], named_latest(run)
    return int(named.removeprefix("step-")) if named else max(steps, default=0)


def sound_before(run: Path, step: int) -> list[int]:
    """Steps of the checkpoints before `step` that no start has found damaged."""
    older = [path for path in complete_checkpoints(run) if step_of(path) < step]
    return [step_of(path) for path in older if not (path / DAMAGED).exists()]


def fill_disk(folder: Path) -> Path:
    """Takes all room of the disk that `folder` lies on, and returns the file that does."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return ballast


def damage(run: Path, how: str, name: str, where: float) -> bool:
    """Spoils a file of the newest checkpoint; False, and nothing done, where no sound one is older."""
    newest = saved_step(run)
    path = run / "checkpoints" / step_name(newest) / name
    if not sound_before(run, newest) or not path.exists():
        return False
    data = bytearray(path.read_bytes())
    at = int(where * (len(data) - 1))
    if how == "missing":
        path.unlink()
        return True
    if how == "bit flipped":
        data[at] ^= 4
    path.write_bytes(data if how == "bit flipped" else data[:at])
    return True


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int):
    """A file system of its own in `folder`, in memory; needs the right to mount. Gone, with all in it, afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a small disk."""
    try:
        with small_disk(folder, 1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
