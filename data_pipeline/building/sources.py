"""Reads documents out of files, as a plan that any number of workers can share.

    files -> plan_units -> units      a file, or a part of a big one that can be read by itself
          -> group_tasks -> tasks     neighbouring units that make one shard together
    unit -> read_documents -> (number of the record in the unit, text)

Big jsonl and line files are cut into byte ranges at line borders, parquet by row groups; compressed files are cut
where they consist of many members (`members`), and streamed otherwise. A plan opens those files alone that are larger
than a unit, FILES_AT_ONCE side by side, and reads a megabyte of each or its footer. It depends on the files alone.
Bad records never stop a build: they are counted by reason. How each kind of file is cut and read stands in `formats`.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from common.mistakes import Mistake
from data_pipeline.building.formats.arrow import plan_arrow, read_arrow
from data_pipeline.building.formats.lines import read_json_lines, read_text_lines, read_whole
from data_pipeline.building.formats.megatron import plan_megatron
from data_pipeline.building.formats.pages import read_html, read_warc
from data_pipeline.building.formats.parquet import plan_parquet, read_parquet
from data_pipeline.building.formats.tables import DELIMITERS, read_table
from data_pipeline.building.members import has_members
from data_pipeline.building.records import MAX_DOCUMENT_BYTES, MAX_EXAMPLES, Record, Rejects, Unit
from data_pipeline.building.remote_files import open_file
from data_pipeline.building.source_files import SourceFile
from data_pipeline.config import SourceConfig

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "MAX_EXAMPLES",
    "Record",
    "Rejects",
    "Unit",
    "group_tasks",
    "holds_tokens",
    "plan_units",
    "read_documents",
]

FILES_AT_ONCE = 16
"""Files whose footers are read side by side: that is waiting, not work."""
UNCUT = (*DELIMITERS, "html")
"""Formats of which only the beginning tells how to go on, or that hold one document."""
EXPANSION = {"gzip": 4, "zstd": 4, "parquet": 2, "megatron": 2}
"""Guess of how many bytes of text one stored byte holds; it only balances the sizes of tasks."""
TOKENS = "megatron"
"""The one format whose documents are no text."""
PLANNERS = {"parquet": plan_parquet, "arrow": plan_arrow, TOKENS: plan_megatron}
"""How files are cut whose parts only they themselves tell."""
READERS = {"parquet": read_parquet, "arrow": read_arrow, "jsonl": read_json_lines, "csv": read_table, "tsv": read_table}
"""How files are read that hold the text under a key."""
PAGES = {"warc": read_warc, "html": read_html}
"""How files are read that hold web pages."""


def refuse_tokens(files: Sequence[SourceFile]) -> None:
    """ValueError when filters are to judge documents whose text is not there."""
    tokens = next((file for file in files if file.format == TOKENS), None)
    if tokens is not None:
        raise Mistake(
            f"data.filters: {tokens.url} of data.sources[{tokens.source}] holds tokens, and filters judge text; "
            "build it as a dataset of its own and name that in data.mix"
        )


# ---- the plan


def plan_units(files: Sequence[SourceFile], sources: Sequence[SourceConfig], unit_bytes: int) -> list[Unit]:
    """Cuts files into units of about unit_bytes of text where that is possible, in the order of the files.

    Raises ValueError when a big parquet or arrow file is none.
    """
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        plans = pool.map(lambda file: _plan_file(file, sources[file.source], unit_bytes), files)
        return [unit for plan in plans for unit in plan]


def _plan_file(file: SourceFile, source: SourceConfig, unit_bytes: int) -> list[Unit]:
    weight = file.size * EXPANSION.get(file.compression or file.format, 1)
    whole = Unit(file.source, file.url, file.format, file.compression, weight)
    is_one = file.format in UNCUT or (file.format == "text" and source.document == "file")
    if weight <= unit_bytes or is_one or not _has_parts(file):
        return [whole]
    if file.format in PLANNERS:
        with open_file(file.url, scattered=file.format != "parquet") as opened:
            return PLANNERS[file.format](opened, whole, source.text_key, unit_bytes)
    num_parts = -(-weight // unit_bytes)
    borders = [file.size * part // num_parts for part in range(num_parts + 1)]
    return [
        dataclasses.replace(whole, weight=(stop - start) * weight // file.size, start=start, stop=stop)
        for start, stop in itertools.pairwise(borders)
    ]


def _has_parts(file: SourceFile) -> bool:
    """Whether a file that is larger than a unit can be read from somewhere within it."""
    if file.compression is None:
        return file.format != "warc"
    if file.format == "warc" and file.compression != "gzip":
        return False
    with open_file(file.url) as opened:
        return has_members(opened, file.compression)


def group_tasks(units: Sequence[Unit], task_bytes: int) -> list[list[Unit]]:
    """Fills tasks with neighbouring units of one source until the next one would make them larger than task_bytes.

    A task holds texts or tokens, never both.
    """
    tasks: list[list[Unit]] = []
    size = 0
    for unit in units:
        if not tasks or size + unit.weight > task_bytes or _differ(unit, tasks[-1][0]):
            tasks.append([])
            size = 0
        tasks[-1].append(unit)
        size += unit.weight
    return tasks


def _differ(unit: Unit, other: Unit) -> bool:
    return unit.source != other.source or holds_tokens([unit]) != holds_tokens([other])


def holds_tokens(units: Sequence[Unit]) -> bool:
    """Whether a task consists of tokens, which `formats.megatron` reads, and not of texts."""
    return bool(units) and units[0].format == TOKENS


# ---- reading


def read_documents(unit: Unit, source: SourceConfig, rejects: Rejects) -> Iterator[Record]:
    """Texts of a unit in the order of its records, memory bounded by a block and the longest record.

    Raises ValueError when the file as a whole cannot be read (truncated, no parquet, no such column).
    """
    rejects.unit = unit
    with open_file(unit.url) as file:
        if unit.format in READERS:
            yield from READERS[unit.format](file, unit, source.text_key, rejects)
        elif unit.format in PAGES:
            yield from PAGES[unit.format](file, unit, rejects)
        elif source.document == "line":
            yield from read_text_lines(file, unit, rejects)
        else:
            yield from read_whole(file, unit, rejects)
