"""What a rank has to say: one format, with time and rank, for all lines of logs/rank-N.log.

    2026-11-25T09:30:00Z rank 3 warning training.setup: ...

Lines go to standard output, which the launchers send to the file. How a rank ended is not said here but on standard
error, in the last lines, and begins with `error: ` for a user's mistake (worker.py).
"""

import logging
import sys
import time

ROOMS = ("training", "model", "data_pipeline", "common")
"""Loggers whose information is shown; of all others only warnings and worse are."""


class _Format(logging.Formatter):
    """Times are UTC, for ranks may stand in different zones."""

    @staticmethod
    def converter(seconds: float | None) -> time.struct_time:
        return time.gmtime(seconds)

    def __init__(self, rank: int):
        super().__init__(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(logging.makeLogRecord(record.__dict__ | {"levelname": record.levelname.lower()}))


class _Handler(logging.StreamHandler):
    """Ours, which a second call of `set_up` finds again."""


def set_up(rank: int) -> None:
    """Makes this process speak as `rank`; Python's warnings become lines too."""
    handler = _Handler(sys.stdout)
    handler.setFormatter(_Format(rank))
    root = logging.getLogger()
    root.handlers = [*(each for each in root.handlers if not isinstance(each, _Handler)), handler]
    root.setLevel(logging.WARNING)
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.INFO)
    logging.captureWarnings(True)
