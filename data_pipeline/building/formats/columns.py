"""The text column of files that hold columns: whether it is there and holds text, and the records in it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.mistakes import Mistake
from data_pipeline.building.records import MAX_DOCUMENT_BYTES, Record, Rejects, decode


def check_column(schema: pa.Schema, url: str, text_key: str) -> None:
    """ValueError when the column is not there or holds no text."""
    kind = _column_type(schema, text_key)
    if kind is None:
        raise no_column(url, text_key, schema.names)
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    if not re.fullmatch(r"(large_)?(string|binary)(_view)?", str(kind)):
        raise Mistake(f"{url}: column '{text_key}' is {kind}, not text; set text_key of its source")


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


def no_column(url: str, text_key: str, names: Sequence[str]) -> Mistake:
    """What to say of a file without the text column."""
    shown = ", ".join(names)
    shown = shown if len(shown) <= 300 else f"{shown[:300]}..."
    return Mistake(f"{url}: no column '{text_key}' (it has {shown}); set text_key of its source")


def column_bytes(batch: pa.RecordBatch, text_key: str) -> list[bytes | None]:
    """Values of the text column; bytes, because arrow does not see to it that a string is valid UTF-8."""
    return _text_of(batch, text_key).cast(pa.large_binary()).to_pylist()


def _text_of(batch: pa.RecordBatch, text_key: str) -> pa.Array:
    if text_key in batch.schema.names:
        return batch.column(batch.schema.names.index(text_key))
    column, *fields = text_key.split(".")
    return pc.struct_field(batch.column(batch.schema.names.index(column)), fields)


def column_records(batches: Iterable[Sequence[bytes | None]], rejects: Rejects) -> Iterator[Record]:
    """The records of a column that comes in batches of values."""
    number = 0
    for values in batches:
        for raw in values:
            number += 1
            if raw is None:
                rejects.add("missing_text", number)
            elif len(raw) > MAX_DOCUMENT_BYTES:
                rejects.add("too_large", number)
            else:
                yield from decode(number, raw, rejects)
