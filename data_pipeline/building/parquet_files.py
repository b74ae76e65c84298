"""The text column of parquet files: whether it is there, how much is in it, and its values."""

import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.mistakes import Mistake


def open_parquet(file: IO[bytes], url: str, text_key: str) -> pq.ParquetFile:
    """Opens a parquet file and sees that the text column is there and holds text."""
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(url, error) from None
    kind = _column_type(parquet.schema_arrow, text_key)
    if kind is None:
        raise no_column(url, text_key, parquet.schema_arrow.names)
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    if not re.fullmatch(r"(large_)?(string|binary)(_view)?", str(kind)):
        raise Mistake(f"{url}: column '{text_key}' is {kind}, not text; set text_key of its source")
    return parquet


def _column_type(schema: pa.Schema, text_key: str) -> pa.DataType | None:
    """Type of a column, or of a field within structs such as `meta.text`; None when there is none."""
    if text_key in schema.names:
        return schema.field(text_key).type
    kind: Any = pa.struct(list(schema))
    for key in text_key.split("."):
        if not isinstance(kind, pa.StructType) or kind.get_field_index(key) < 0:
            return None
        kind = kind.field(key).type
    return kind


def text_bytes(parquet: pq.ParquetFile, text_key: str) -> list[int]:
    """About how many bytes of text are in each row group."""
    names = parquet.schema_arrow.names
    column = names.index(text_key) if text_key in names else None
    return [_group_bytes(parquet, group, column) for group in range(parquet.num_row_groups)]


def _group_bytes(parquet: pq.ParquetFile, group: int, column: int | None) -> int:
    row_group = parquet.metadata.row_group(group)
    if column is not None and row_group.num_columns == len(parquet.schema_arrow.names):
        return row_group.column(column).total_uncompressed_size
    return row_group.total_byte_size


def column_values(parquet: pq.ParquetFile, url: str, group: int, text_key: str) -> Iterator[list[bytes | None]]:
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
        # bytes, because arrow does not see to it that a string is valid UTF-8
        yield _text_of(batch, text_key).cast(pa.large_binary()).to_pylist()


def _text_of(batch: pa.RecordBatch, text_key: str) -> pa.Array:
    if text_key in batch.schema.names:
        return batch.column(batch.schema.names.index(text_key))
    column, *fields = text_key.split(".")
    return pc.struct_field(batch.column(batch.schema.names.index(column)), fields)


def _damaged(url: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return Mistake(
        f"{url}: not a readable parquet file ({str(error).splitlines()[0]}); "
        "fetch it again or correct the format of its source"
    )


def no_column(url: str, text_key: str, names: Sequence[str]) -> Mistake:
    """What to say of a file without the text column."""
    shown = ", ".join(names)
    shown = shown if len(shown) <= 300 else f"{shown[:300]}..."
    return Mistake(f"{url}: no column '{text_key}' (it has {shown}); set text_key of its source")
