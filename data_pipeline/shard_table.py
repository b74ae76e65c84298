"""The shards of a split as columns: a few dozen bytes for each, however many there are.

A rank holds the whole table and gets it from rank 0, so it is arrays and not objects: for a shard the bytes of its
name, 28 of counts and 48 of digests, which is what it takes to find a shard and to see that it is the right one.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import core_schema

from common.mistakes import Mistake
from data_pipeline.shards import SUFFIXES

DIGEST_BYTES = 16


class ManifestPart(BaseModel):
    """A part of `manifest.json`: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ShardInfo(ManifestPart):
    """One shard of a split."""

    name: str = Field(min_length=1)
    """Prefix of its files inside the dataset's folder, such as `train-00000`."""
    num_documents: int = Field(ge=0, lt=2**60)
    """Documents in it."""
    num_tokens: int = Field(ge=0, lt=2**60)
    """Tokens in it, those at the borders of documents included."""
    checksums: dict[str, str]
    """xxh3_128 of each of its files, by file name."""
    source_bytes: int = Field(ge=0, lt=2**60)
    """UTF-8 bytes of the text its documents were made from."""
    source: int = Field(default=0, ge=0, lt=2**31)
    """Number of the source its documents are from; datasets of old are of one source."""


@dataclasses.dataclass(frozen=True, eq=False)
class ShardTable(Sequence[ShardInfo]):
    """The N shards of a split, in the order that numbers their tokens."""

    names: np.ndarray
    """UTF-8 prefix of their files, bytes [N]."""
    num_documents: np.ndarray
    """int64 [N]."""
    num_tokens: np.ndarray
    """int64 [N]."""
    source_bytes: np.ndarray
    """int64 [N]."""
    digests: np.ndarray
    """xxh3_128 of each file, in the order of SUFFIXES: uint8 [N, 3, 16]."""
    sources: np.ndarray
    """Number of the source each is from, int32 [N]."""

    @classmethod
    def of(cls, shards: Sequence[ShardInfo]) -> "ShardTable":
        """A table of shards. ValueError when one lacks the digest of one of its files."""
        digests = b"".join(_digests(shard) for shard in shards)
        return cls(
            names=np.array([shard.name.encode() for shard in shards], dtype=bytes),
            num_documents=_numbers(shard.num_documents for shard in shards),
            num_tokens=_numbers(shard.num_tokens for shard in shards),
            source_bytes=_numbers(shard.source_bytes for shard in shards),
            digests=np.frombuffer(digests, np.uint8).reshape(len(shards), len(SUFFIXES), DIGEST_BYTES),
            sources=np.fromiter((shard.source for shard in shards), np.int32),
        )

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> ShardInfo: ...

    @overload
    def __getitem__(self, index: slice) -> "ShardTable": ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._some(index)
        name = self.name(index)
        return ShardInfo(
            name=name,
            num_documents=int(self.num_documents[index]),
            num_tokens=int(self.num_tokens[index]),
            checksums={
                name + suffix: self.digests[index, file].tobytes().hex() for file, suffix in enumerate(SUFFIXES)
            },
            source_bytes=int(self.source_bytes[index]),
            source=int(self.sources[index]),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and all(
            np.array_equal(getattr(self, field.name), getattr(other, field.name)) for field in dataclasses.fields(self)
        )

    __hash__ = None  # type: ignore[assignment]

    def name(self, index: int) -> str:
        """Prefix of the files of one shard."""
        return self.names[index].decode()

    def of_source(self, number: int) -> "ShardTable":
        """The shards of one source."""
        return self._some(self.sources == number)

    @classmethod
    def joined(cls, tables: Sequence["ShardTable"]) -> "ShardTable":
        """Several tables, one after the other."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(table, name) for table in tables]) for name in names))

    def _some(self, chosen: slice | np.ndarray) -> "ShardTable":
        return ShardTable(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    @property
    def content(self) -> bytes:
        """Counts and digests of all of them, which tell one split from another whatever the files are called."""
        counts = np.stack([self.num_documents, self.num_tokens]).astype("<i8")
        return counts.tobytes() + self.digests.tobytes()

    @functools.cached_property
    def digest(self) -> str:
        """Hash of that, xxh3_128 hex."""
        return xxhash.xxh3_128_hexdigest(self.content)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        rows = handler.generate_schema(list[ShardInfo])

        def from_python(value: Any, validate: Any) -> "ShardTable":
            return value if isinstance(value, cls) else cls.of(validate(value))

        return core_schema.json_or_python_schema(
            json_schema=core_schema.no_info_after_validator_function(cls.of, rows),
            python_schema=core_schema.no_info_wrap_validator_function(from_python, rows),
            serialization=core_schema.plain_serializer_function_ser_schema(list, return_schema=rows),
        )


def _numbers(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, np.int64)


def _digests(shard: ShardInfo) -> bytes:
    names = [shard.name + suffix for suffix in SUFFIXES]
    unknown = next((name for name in shard.checksums if name not in names), None)
    if unknown is not None:
        raise Mistake(f"shard {shard.name} has a checksum of {unknown}, which is none of its files")
    return b"".join(_digest(name, shard.checksums.get(name)) for name in names)


def _digest(name: str, text: str | None) -> bytes:
    if text is None:
        raise Mistake(f"{name} has no checksum")
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != DIGEST_BYTES:
        raise Mistake(f"the checksum of {name} is {text[:40]!r}, not {2 * DIGEST_BYTES} hexadecimal digits")
    return digest
