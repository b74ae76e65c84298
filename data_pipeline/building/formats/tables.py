"""Tables of commas or tabs: one column of theirs is the text."""

import codecs
import csv
import itertools
from collections.abc import Iterator
from typing import IO

from data_pipeline.building.formats.columns import no_column
from data_pipeline.building.formats.lines import read_lines
from data_pipeline.building.records import MAX_DOCUMENT_BYTES, Record, Rejects, Unit, decode

SPOILED_LINE = 'x"y\rz\n'
"""No part of a row, whether quotes are open or not: it stands for a line that is too large."""
DELIMITERS = {"csv": ",", "tsv": "\t"}


def read_table(file: IO[bytes], unit: Unit, text_key: str, rejects: Rejects) -> Iterator[Record]:
    """A column of rows separated by commas or tabs (RFC 4180), the first of which names the columns.

    A row that does not have as many fields as that, or quotes that do not close, is counted and left out.
    """
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    rows = csv.reader(_table_lines(file, unit), delimiter=DELIMITERS[unit.format], strict=True)
    names: list[str] = []
    for number in itertools.count(0):
        try:
            row = next(rows, None)
        except csv.Error as error:
            rejects.add("too_large" if "limit" in str(error) else f"malformed_{unit.format}", number)
            continue
        if row is None:
            return
        if not names:
            names = row
            if text_key not in names:
                raise no_column(unit.url, text_key, [name.encode(errors="replace").decode() for name in names])
        elif row:
            if len(row) != len(names):
                rejects.add(f"malformed_{unit.format}", number)
            else:
                yield from decode(number, row[names.index(text_key)].encode(errors="surrogateescape"), rejects)


def _table_lines(file: IO[bytes], unit: Unit) -> Iterator[str]:
    """Lines with their line feeds; a byte that is no UTF-8 is kept as a surrogate."""
    for number, line in enumerate(read_lines(file, unit)):
        if line is None:
            yield SPOILED_LINE
            continue
        line = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        yield line.decode(errors="surrogateescape") + "\n"
