"""The run's diary: one JSON line for each start, resume, save, evaluation, stop, finish and error.

`events.jsonl` is rank 0's, and all ranks' where they are on one machine. What other machines have to say stands in
files of their own in `events/`, as network file systems do not append whole lines for several machines: errors of
ranks of a scheduler's job, and what its script does. Readers merge them (launcher/run_folder.py).
"""

import time
from pathlib import Path
from typing import Any

import xxhash

from common.json_lines import append_line, read_lines
from training.lines import EVENT

RECENT = 64
"""Last events among which an error of another rank is looked for."""

FOLDER = "events"
"""In a run's folder: one file for each start of a job, and one for each error of such a start."""


class EventLog:
    """Writes events; ordinary ones on rank 0 only, errors on any rank.

    `facts`, such as the name of this start, stand in each of them.
    """

    def __init__(self, run_dir: Path, rank: int, facts: dict[str, Any] | None = None):
        self.path = run_dir / "events.jsonl"
        self.rank = rank
        self.facts = facts or {}

    def write(self, event: str, **facts: Any) -> None:
        """Adds an event of rank 0 with its facts; other ranks stay silent."""
        if self.rank == 0:
            append_line(self.path, {"time": time.time(), "event": event, **facts, **self.facts})

    def error(self, message: str, exit_code: int, facts: dict[str, Any] | None = None, where: str = "") -> None:
        """Adds an error, unless a rank of the same start has just said the same; of this rank, if `facts` name none.

        `where` follows the message, and may differ between those who say the same.
        """
        facts = {"rank": self.rank, "message": message + where, "exit_code": exit_code, **(facts or {})}
        record = {"time": time.time(), "event": "error", **facts, **self.facts}
        if self._of_job:
            self._error_of_job(record, message)
        elif not any(str(each.get("message")).startswith(message) for each in self._recent_errors()):
            append_line(self.path, record)

    def has_been_told(self) -> bool:
        """Whether a rank of this start has noted an error, outside of a job within the last minute."""
        if self._of_job:
            return any((self.path.parent / FOLDER).glob(f"error-{self._of_job}-*.jsonl"))
        return bool(self._recent_errors())

    @property
    def _of_job(self) -> str:
        """Name of this start of a scheduler's job, whose ranks may be on many machines; else empty."""
        return f"{self.facts['job']}.{self.facts['restart']}" if "job" in self.facts else ""

    def _recent_errors(self) -> list[dict[str, Any]]:
        since, same = time.time() - 60, {"event": "error", **self.facts}
        recent = [record for record in read_lines(self.path, EVENT)[-RECENT:] if record.get("time", 0) > since]
        return [record for record in recent if all(record.get(key) == value for key, value in same.items())]

    def _error_of_job(self, record: dict[str, Any], message: str) -> None:
        """The first rank of a start to say something makes the file for it, and no other does."""
        digest = xxhash.xxh3_64_hexdigest(message.encode(errors="replace"))
        path = self.path.parent / FOLDER / f"error-{self._of_job}-{digest}.jsonl"
        path.parent.mkdir(exist_ok=True)
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return
        append_line(path, record)
