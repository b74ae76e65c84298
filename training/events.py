"""The run's diary, `events.jsonl`: one JSON line for each start, resume, save, evaluation, stop, finish and error."""

import time
from pathlib import Path
from typing import Any

from common.json_lines import append_line, read_lines
from training.lines import EVENT

RECENT = 64
"""Last events among which an error of another rank is looked for."""


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

    def error(self, message: str, exit_code: int) -> None:
        """Adds an error of this rank, unless another rank of the same start has just said the same."""
        now = time.time()
        same = {"event": "error", "message": message, **self.facts}
        for record in read_lines(self.path, EVENT)[-RECENT:]:
            if record.get("time", 0) > now - 60 and all(record.get(key) == value for key, value in same.items()):
                return
        facts = {"rank": self.rank, "message": message, "exit_code": exit_code}
        append_line(self.path, {"time": now, "event": "error", **facts, **self.facts})
