"""The run's diary: one JSON line for each start, resume, save, evaluation, stop, finish and error.

`events.jsonl` is rank 0's, and all ranks' where they are on one machine. What other machines have to say stands in
files of their own in `events/`, as network file systems do not append whole lines for several machines: errors of
other ranks, and what a scheduler's job does. `read_events` merges them.
"""

import time
from pathlib import Path
from typing import Any

import xxhash

from common.json_lines import append_line, read_lines

FOLDER = "events"
"""In a run's folder: one file for each start of a job, and one for each error of such a start."""


class EventLog:
    """Writes events; ordinary ones on rank 0 only, errors on any rank. `facts` stand in each of them."""

    def __init__(self, run_dir: Path, rank: int, facts: dict[str, Any] | None = None):
        self.path = run_dir / "events.jsonl"
        self.rank = rank
        self.facts = facts or {}

    def write(self, event: str, **facts: Any) -> None:
        """Adds an event of rank 0 with its facts; other ranks stay silent."""
        if self.rank == 0:
            append_line(self.path, {"time": time.time(), "event": event, **facts, **self.facts})

    def error(self, message: str, exit_code: int) -> None:
        """Adds an error of this rank, unless another rank has just said the same."""
        facts = {"rank": self.rank, "message": message, "exit_code": exit_code}
        record = {"time": time.time(), "event": "error", **facts, **self.facts}
        if self.facts:
            self._error_of_job(record)
        elif not self._was_just_said(record):
            append_line(self.path, record)

    def _was_just_said(self, record: dict[str, Any]) -> bool:
        recent = [each for each in read_lines(self.path)[-64:] if each.get("time", 0) > record["time"] - 60]
        return any(each.get("event") == "error" and each.get("message") == record["message"] for each in recent)

    def _error_of_job(self, record: dict[str, Any]) -> None:
        """Only the first rank of a start of a job to say something makes the file for it."""
        start = f"{record.get('job')}.{record.get('restart')}"
        name = f"error-{start}-{xxhash.xxh3_64_hexdigest(record['message'].encode(errors='replace'))}.jsonl"
        path = self.path.parent / FOLDER / name
        path.parent.mkdir(exist_ok=True)
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return
        append_line(path, record)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All events of a run, whoever wrote them, oldest first."""
    files = [run_dir / "events.jsonl", *sorted((run_dir / FOLDER).glob("*.jsonl"))]
    return sorted((event for path in files for event in read_lines(path)), key=_moment)


def _moment(event: dict[str, Any]) -> float:
    moment = event.get("time")
    return moment if isinstance(moment, int | float) else 0.0
