"""Lines of JSON: appended whole, read without what a kill, a full disk or a stray hand left in between.

    record -> append_line -> file -> read_lines, read_last -> records of the expected form, and why others are left out

A reader says with a `Form` what it relies on; a line that does not keep to it is left out and named, never an error.
"""

import dataclasses
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.files import open_file, read_file

Record = dict[str, Any]
NUMBER: tuple[type, ...] = (int, float)
"""A finite number."""
FIGURE: tuple[type, ...] = (int, float, type(None))
"""A number that may be unknown, infinite or none at all (NaN)."""
_BLOCK = 65536
"""Bytes read at once from a file's end: a hundred lines of metrics."""


@dataclasses.dataclass(frozen=True)
class Form:
    """What a line holds: keys that must be there, and kinds of others where they are. Truth values are no numbers."""

    required: Mapping[str, "Kind"] = dataclasses.field(default_factory=dict)
    optional: Mapping[str, "Kind"] = dataclasses.field(default_factory=dict)
    with_key: Mapping[str, "Form"] = dataclasses.field(default_factory=dict)
    """Further forms, of lines that have such a key."""

    def fault(self, record: Any) -> str:
        """Why `record` is not of this form, in words; empty when it is."""
        if not isinstance(record, dict):
            return "it is no set of keys and values"
        missing = [f"it has no {key}" for key in self.required if key not in record]
        kinds = {**self.required, **self.optional}
        wrong = [_fault(key, record[key], kind) for key, kind in kinds.items() if key in record]
        further = [form.fault(record) for key, form in self.with_key.items() if key in record]
        return next(filter(None, [*missing, *wrong, *further]), "")


Kind = type | tuple[type, ...] | Form
ANY = Form()


@dataclasses.dataclass(frozen=True)
class Lines:
    """What a file of JSON lines holds."""

    records: list[Record]
    """Its lines of the expected form, oldest first."""
    left_out: list[str]
    """The other lines, one sentence each."""


def parse_json(data: bytes) -> Any:
    """The value of a JSON text. ValueError for whatever is none: no UTF-8, numbers too long, values nested too deep."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def append_line(path: Path, record: Record) -> None:
    """Appends one JSON line in a single write, so that lines of several processes never mix.

    What a kill left of a line before it stays a line of its own. Raises OSError, naming the file, when the line does
    not fit the disk.
    """
    line = (json.dumps(record) + "\n").encode()
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if _is_torn(file):
            line = b"\n" + line
        if os.write(file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, f"{path}: a line could not be written ({error.strerror})") from None
    finally:
        os.close(file)


def read_lines(path: Path, form: Form = ANY) -> list[Record]:
    """Lines of a file that are of this form, oldest first; none when there is no file."""
    return examine(path, form).records


def examine(path: Path, form: Form = ANY) -> Lines:
    """The same, and what is wrong with the others."""
    records, left_out = [], []
    for number, line in enumerate(read_file(path).split(b"\n") if path.exists() else (), start=1):
        record, fault = _parsed(line, form)
        if fault:
            left_out.append(f"{path}: line {number} is left out, for {fault}")
        elif record is not None:
            records.append(record)
    return Lines(records, left_out)


def read_last(path: Path, form: Form, key: str) -> Lines:
    """The last line of this form that has `key`, if there is one, and what is wrong with those after it.

    Reads from the file's end only as far as needed.
    """
    left_out: list[str] = []
    for line in _backwards(path) if path.exists() else ():
        record, fault = _parsed(line, form)
        if fault:
            left_out.append(f"{path}: a line near its end is left out, for {fault}")
        elif record is not None and key in record:
            return Lines([record], left_out)
    return Lines([], left_out)


def _is_torn(file: int) -> bool:
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def _parsed(line: bytes, form: Form) -> tuple[Record | None, str]:
    """The record of a line, or why there is none; neither for an empty line."""
    if not line.strip():
        return None, ""
    try:
        record = parse_json(line)
    except ValueError:
        return None, "it is cut short or no JSON"
    fault = form.fault(record)
    return (None, fault) if fault else (record, "")


def _backwards(path: Path) -> Iterator[bytes]:
    """Lines of a file, the last one first."""
    with open_file(path) as file:
        position, rest = file.seek(0, os.SEEK_END), b""
        while position > 0:
            start = max(0, position - _BLOCK)
            file.seek(start)
            first, *lines = (file.read(position - start) + rest).split(b"\n")
            yield from reversed(lines)
            position, rest = start, first
        yield rest


def _fault(key: str, value: Any, kind: "Kind") -> str:
    if isinstance(kind, Form):
        fault = kind.fault(value)
        return f"in its {key}, {fault}" if fault else ""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if right and kind is NUMBER and not math.isfinite(value):
        return f"its {key} is not finite"
    return "" if right else f"its {key} is {_kind_of(value)}"


def _kind_of(value: Any) -> str:
    names = {str: "text", bool: "a truth value", list: "a list", dict: "a set of keys", int: "a number"}
    return "empty" if value is None else names.get(type(value), "a number with a fraction")
