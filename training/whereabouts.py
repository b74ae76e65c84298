"""Where each rank of a run is, in a few words that travel from rank to rank, and whom the others wait for.

A run is in one phase after the other, each with a deadline of its own (config section `deadlines`). When one passes,
most ranks only wait; the one they wait for is behind them, or is in no collective, or does not even answer.
"""

import dataclasses
import pickle
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import torch._C._distributed_c10d as c10d

ROOT = Path(__file__).resolve().parents[1]
WAITS = (str(ROOT / "training" / "plane.py"), "/torch/distributed/distributed_c10d.py")
"""Files a rank is in while it waits for others."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a rank is."""

    rank: int
    """Which."""
    node: str
    """Name of its machine."""
    phase: str = ""
    """What it is at."""
    step: int | None = None
    """Which step, where there is one."""
    minutes: float = 0.0
    """Within how many minutes the run ends if it stays there."""
    behind: str = ""
    """Phase of what goes on behind its steps, if anything does."""
    note: str = ""
    """Where that is not the deadline of its phase: what else."""
    seconds: float = 0.0
    """How long it has been there."""
    beats: int = 0
    """How often it has said that it got somewhere; all ranks say so at the same points."""
    waiting: bool = False
    """Whether it waits for others, in an exchange or a collective."""
    begun: int = 0
    """Collectives it has begun."""
    where: str = ""
    """Line of our code that it is at."""
    answers: bool = True
    """Whether its process answers at all."""

    @property
    def suspicion(self) -> tuple:
        """Orders places: the greatest is of the rank that the others wait for."""
        return not self.answers, -self.beats, not self.waiting, -self.begun, self.seconds

    @property
    def name(self) -> str:
        """The rank and its node."""
        return f"rank {self.rank} on node {self.node}"

    @property
    def at(self) -> str:
        """Its phase, which step, and what goes on behind it."""
        own = f"phase {self.phase}" + (f" {self.step}" if self.step is not None else "")
        return own + (f" and, behind it, phase {self.behind}" if self.behind and self.behind != self.phase else "")

    @property
    def facts(self) -> dict[str, Any]:
        """Who it is and what it is at, for the diary."""
        found = {"rank": self.rank, "node": self.node, "phase": self.phase, "step": self.step}
        return {name: value for name, value in found.items() if value not in ("", None)}

    @property
    def late(self) -> bool:
        """Whether it has been there for too long."""
        return self.minutes > 0 and self.seconds > patience(self.minutes)

    def aged(self, silence: float, answers: bool) -> "Place":
        """The same rank after so many seconds in which nothing was heard of it."""
        return dataclasses.replace(self, seconds=self.seconds + silence, answers=answers)

    def sentence(self) -> str:
        """That it is the one the run ends for."""
        words = f"{self.name} got nowhere for {self.minutes:.3g} minutes in {self.at}"
        words += f", {self.note}" if self.note else ""
        if not self.answers:
            return f"{words}: it answers nothing, so its process was stopped, hangs whole, or its node is gone"
        words += f", at {self.where}" if self.where else ""
        return f"{words}: it waits for others, who are no further" if self.waiting else words


def slack(minutes: float) -> float:
    """Seconds at the end of a deadline in which ranks find out who is to blame, and end."""
    return min(20.0, minutes * 60 / 3)


def patience(minutes: float) -> float:
    """Seconds that a rank may be in one place, so that all have ended when the deadline passes."""
    return minutes * 60 - slack(minutes)


def worst(places: Iterable[Place]) -> Place:
    """The place of the rank that the others wait for."""
    return max(places, key=lambda place: (place.suspicion, -place.rank))


def looked_up() -> dict[str, Any]:
    """What can be seen of this process from another thread: `waiting`, `begun` and `where` of a Place."""
    begun, done = collectives()
    frames = _frames()
    waits = begun > done or any(frame.f_code.co_filename.endswith(WAITS) for frame in frames)
    ours = (frame for frame in frames if frame.f_code.co_filename.startswith(f"{ROOT}/") and not _is_foreign(frame))
    own = next(ours, None)
    where = "" if own is None else f"{own.f_code.co_filename.removeprefix(f'{ROOT}/')}:{own.f_lineno}"
    return {"waiting": waits, "begun": begun, "where": where}


def collectives() -> tuple[int, int]:
    """How many collectives of all groups this rank has begun, and how many of them are done, by torch's record."""
    begun = done = 0
    for status in flight_record(includeCollectives=False).get("pg_status", {}).values():
        begun += max(0, int(status["last_enqueued_collective"]))
        done += max(0, int(status["last_completed_collective"]))
    return begun, done


def flight_record(**wanted: bool) -> dict[str, Any]:
    """What torch records of the last collectives, NCCL's where it is built with it; empty before there are any."""
    dump = getattr(c10d, "_dump_nccl_trace", None) or c10d._dump_fr_trace  # type: ignore
    return pickle.loads(dump(**wanted))


def write_flight_record(path: Path) -> None:
    """Writes it for `torch.distributed.flight_recorder`, as NCCL does where one of its own waits takes too long."""
    path.write_bytes(pickle.dumps(flight_record()))


def _frames() -> list[FrameType]:
    """Frames of the main thread, innermost first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found


def _is_foreign(frame: FrameType) -> bool:
    return "/site-packages/" in frame.f_code.co_filename
