"""Parquet files: cut by row groups, read a few megabytes of the text column at a time."""

import dataclasses
from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from common.mistakes import Mistake
from data_pipeline.building.formats.columns import check_column, column_bytes, column_records
from data_pipeline.building.records import Record, Rejects, Unit


def plan_parquet(file: IO[bytes], whole: Unit, text_key: str, unit_bytes: int) -> list[Unit]:
    """Neighbouring row groups with about unit_bytes of text, by the sizes that the footer tells."""
    sizes = _text_bytes(_open(file, whole.url, text_key), text_key)
    units: list[Unit] = []
    start = size = 0
    for group, bytes_here in enumerate(sizes):
        size += bytes_here
        if size >= unit_bytes or group == len(sizes) - 1:
            units.append(dataclasses.replace(whole, weight=size, start=start, stop=group + 1))
            start, size = group + 1, 0
    return units


def read_parquet(file: IO[bytes], unit: Unit, text_key: str, rejects: Rejects) -> Iterator[Record]:
    """Records of the row groups of a unit. ValueError when the file cannot be read or has no such column."""
    parquet = _open(file, unit.url, text_key)
    stop = parquet.num_row_groups if unit.stop is None else unit.stop
    groups = (_column_values(parquet, unit.url, group, text_key) for group in range(unit.start, stop))
    yield from column_records((values for group in groups for values in group), rejects)


def _open(file: IO[bytes], url: str, text_key: str) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(url, error) from None
    check_column(parquet.schema_arrow, url, text_key)
    return parquet


def _text_bytes(parquet: pq.ParquetFile, text_key: str) -> list[int]:
    """About how many bytes of text are in each row group."""
    names = parquet.schema_arrow.names
    column = names.index(text_key) if text_key in names else None
    return [_group_bytes(parquet, group, column) for group in range(parquet.num_row_groups)]


def _group_bytes(parquet: pq.ParquetFile, group: int, column: int | None) -> int:
    row_group = parquet.metadata.row_group(group)
    if column is not None and row_group.num_columns == len(parquet.schema_arrow.names):
        return row_group.column(column).total_uncompressed_size
    return row_group.total_byte_size


def _column_values(parquet: pq.ParquetFile, url: str, group: int, text_key: str) -> Iterator[list[bytes | None]]:
    """Values of the text column in one row group, a few megabytes at a time."""
    row_group = parquet.metadata.row_group(group)
    mean_bytes = row_group.total_byte_size // max(row_group.num_rows, 1) + 1
    rows = min(max((8 << 20) // mean_bytes, 1), 8192)
    batches = parquet.iter_batches(batch_size=rows, row_groups=[group], columns=[text_key], use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(url, error) from None
        if batch is None:
            return
        yield column_bytes(batch, text_key)


def _damaged(url: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return Mistake(
        f"{url}: not a readable parquet file ({str(error).splitlines()[0]}); "
        "fetch it again or correct the format of its source"
    )
