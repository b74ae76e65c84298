"""What all readers of sources have in common: the part of a file that they read, and what they leave out.

Unit -> reader -> Record ...     bad records -> Rejects
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

MAX_DOCUMENT_BYTES = 1 << 28
"""Records longer than this are dropped and counted as too_large: memory has to end somewhere."""
MAX_EXAMPLES = 3
"""Bad records of each reason that a task remembers."""
SAMPLE_CHARACTERS = 300
"""How much of the text of each it keeps."""

Record = tuple[int, str]
"""Number of the record in its unit, from 1, and its text."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A file or a part of one."""

    source: int
    """Number of the source in the config."""
    url: str
    """Where the file lies."""
    format: str
    """One of those that SourceConfig.format names, but auto."""
    compression: str | None
    """gzip, zstd or None."""
    weight: int
    """About how many bytes of text are in it."""
    start: int = 0
    """First byte, row group (parquet) or document (megatron); a record belongs to the unit it starts in."""
    stop: int | None = None
    """Byte, row group or document after the last; None reads to the end."""


class Rejects:
    """Records that were dropped: how many for which reason, and where the first ones are."""

    def __init__(self):
        self.counts: Counter[tuple[int, str]] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.samples: list[dict[str, Any]] = []
        """The first texts dropped, of each source for each reason: their beginnings and where they lie."""
        self.changes: Counter[str] = Counter()
        """What was replaced in records that were not dropped, and how often."""
        self.unit: Unit | None = None

    def add(self, reason: str, record: int, text: str | None = None) -> None:
        """Counts one record of the unit being read, by the number of its source and the reason."""
        assert self.unit is not None
        self.counts[self.unit.source, reason] += 1
        if text is not None and self.counts[self.unit.source, reason] <= MAX_EXAMPLES:
            beginning = text[:SAMPLE_CHARACTERS].encode(errors="replace").decode()
            where = {"reason": reason, "source": self.unit.source, "where": self.place(record)}
            self.samples.append({**where, "text": beginning, "characters": len(text)})
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(self.place(record))

    def place(self, record: int) -> str:
        """Where a record of the unit being read lies."""
        assert self.unit is not None
        after = f" after {_part_name(self.unit)}" if self.unit.start else ""
        return f"{self.unit.url} record {record}{after}"

    def by_reason(self) -> dict[str, int]:
        """Counts of all sources."""
        result: Counter[str] = Counter()
        for (_, reason), count in self.counts.items():
            result[reason] += count
        return dict(sorted(result.items()))


def _part_name(unit: Unit) -> str:
    parts = {"parquet": "row group", "megatron": "document"}
    return f"{parts.get(unit.format, 'byte')} {unit.start}"


def decode(number: int, raw: bytes, rejects: Rejects) -> Iterator[Record]:
    """The record of some UTF-8, or none."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        rejects.add("invalid_utf8", number)
        return
    if text:
        yield number, text
    else:
        rejects.add("empty", number)
