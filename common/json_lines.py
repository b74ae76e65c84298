"""Lines of JSON: appended whole, read without what a kill or a full disk cut short."""

import errno
import json
import os
from pathlib import Path
from typing import Any


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends one JSON line in a single write, so that lines of several processes never mix.

    Raises OSError, naming the file, when the line does not fit the disk.
    """
    line = (json.dumps(record) + "\n").encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, f"{path}: a line could not be written ({error.strerror})") from None
    finally:
        os.close(file)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete JSON lines of a file, oldest first; none when there is no file. A torn last line is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:  # what a kill or a full disk cut short
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
