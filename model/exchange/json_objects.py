"""Small JSON files of other people's folders, which may hold anything."""

import json
from pathlib import Path
from typing import Any

from common.mistakes import Mistake

MOST_BYTES = 64 * 2**20
"""Larger files are no settings; the index of the largest models has some megabytes."""
MOST_SHOWN = 60


def read_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises ValueError when it holds none."""
    if file.stat().st_size > MOST_BYTES:
        raise Mistake(f"{file}: it is larger than {MOST_BYTES >> 20} MiB, which no such file is; copy it again")
    return parse_object(file, file.read_bytes())


def parse_object(file: Path, data: bytes) -> dict[str, Any]:
    """The object in some bytes of a file. Raises ValueError when they hold none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{file}: it is not JSON ({quoted(str(error))}); copy it again") from None
    if not isinstance(value, dict):
        raise Mistake(f"{file}: it holds no keys; copy it again")
    return value


def quoted(value: Any) -> str:
    """A value as a sentence quotes it: as JSON has it, cut where it is long, on one line."""
    text = " ".join(value.split()) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
