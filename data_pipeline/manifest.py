"""What a dataset is: the shards of its splits with their counts and checksums, and what they were made with.

`manifest.json` is written last, so a folder without one is no dataset, however many shards lie in it.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.files import written_aside
from common.mistakes import Mistake
from data_pipeline.shards import ADVICE, SUFFIXES, shard_sizes, token_dtype

FILE_NAME = "manifest.json"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ShardInfo(_Record):
    """One shard of a split."""

    name: str
    """Prefix of its files inside the dataset's folder, such as `train-00000`."""
    num_documents: int = Field(ge=0)
    """Documents in it."""
    num_tokens: int = Field(ge=0)
    """Tokens in it, those at the borders of documents included."""
    checksums: dict[str, str]
    """xxh3_128 of each of its files, by file name."""
    source_bytes: int = Field(ge=0)
    """UTF-8 bytes of the text its documents were made from."""


class Manifest(_Record):
    """All there is to know about a dataset without opening a shard."""

    version: int = Field(default=1, ge=1, le=1)
    """Version of this record."""
    tokenizer_fingerprint: str
    """Hash of the vocabulary the ids belong to."""
    vocab_size: int = Field(ge=1)
    """Ids are below this."""
    dtype: str
    """Type of an id on disk: `uint16` or `int32`."""
    bos_id: int
    """Id every document begins with."""
    eos_id: int
    """Id every document ends with."""
    special_ids: dict[str, int] = Field(default_factory=dict)
    """Ids of other special pieces, by name: pad, unk, mask, cls, sep, and the modes R, S and X."""
    num_sentinels: int = Field(default=0, ge=0)
    """How many sentinels the vocabulary has."""
    first_sentinel_id: int | None = None
    """Id of the first of them; the others follow it."""
    word_starts: str | None = None
    """Which ids begin a word wherever they stand, as `vocabulary.packed_flags`; empty in datasets of old."""
    word_ends: str | None = None
    """Which ids end one, so that what follows begins another."""
    config_fingerprint: str
    """Hash of the configuration the dataset was built from."""
    splits: dict[str, list[ShardInfo]]
    """Shards of each split, in the order that numbers their tokens."""
    counts: dict[str, int] = Field(default_factory=dict)
    """What became of the documents read: kept, and dropped by reason."""

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides which tokens training sees, xxh3_128 hex; names of shards do not."""
        files = [
            [digest for name, digest in sorted(shard.checksums.items()) if not name.endswith(".sums")]
            for shard in self.splits.get("train", [])
        ]
        facts = [self.version, self.tokenizer_fingerprint, self.vocab_size, self.dtype, files]
        return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())

    def num_tokens(self, split: str) -> int:
        """Tokens of all shards of a split."""
        return sum(shard.num_tokens for shard in self.splits.get(split, []))

    def num_documents(self, split: str) -> int:
        """Documents of all shards of a split."""
        return sum(shard.num_documents for shard in self.splits.get(split, []))

    @property
    def mean_document_length(self) -> float:
        """Tokens of a document on average, over all splits; infinite when there is none."""
        num_documents = sum(self.num_documents(split) for split in self.splits)
        return sum(self.num_tokens(split) for split in self.splits) / num_documents if num_documents else math.inf

    def save(self, folder: Path) -> None:
        """Writes `manifest.json` so that it is there whole or not at all."""
        with written_aside(Path(folder) / FILE_NAME) as file:
            file.write(self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Reads a dataset's manifest and sees that its shards are there, each file with its proper size.

        Raises ValueError, one sentence, when it is not there or broken, or when a shard is missing or truncated.
        """
        path = Path(folder) / FILE_NAME
        try:
            body = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise Mistake(
                f"data.path: {folder} holds no {FILE_NAME}; run 'shardline data build CONFIG' first"
            ) from None
        try:
            manifest = cls.model_validate_json(body)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the file"
            raise Mistake(f"{path}: {where}: {fault['msg']}; {ADVICE}") from None
        _check_files(Path(folder), manifest)
        return manifest


def _check_files(folder: Path, manifest: Manifest) -> None:
    if token_dtype(manifest.vocab_size).name != manifest.dtype:
        raise Mistake(
            f"{folder / FILE_NAME}: dtype {manifest.dtype} does not go with vocab_size {manifest.vocab_size}; {ADVICE}"
        )
    found = _sizes_below(folder)
    for name, size in _expected_files(manifest):
        if name not in found:
            raise Mistake(f"{folder / name}: no such file, though {FILE_NAME} names it; {ADVICE}")
        if found[name]() != size:
            raise Mistake(f"{folder / name}: {found[name]()} bytes where {size} were written; {ADVICE}")


def _expected_files(manifest: Manifest) -> Iterator[tuple[str, int]]:
    dtype = np.dtype(manifest.dtype)
    for shards in manifest.splits.values():
        for shard in shards:
            sizes = shard_sizes(shard.num_documents, shard.num_tokens, dtype)
            for suffix in SUFFIXES:
                yield shard.name + suffix, sizes[suffix]


def _sizes_below(folder: Path) -> dict[str, Callable[[], int]]:
    """Name of each file in the folder, with a function that looks its size up: one listing for any number of shards."""
    with os.scandir(folder) as entries:
        return {entry.name: lambda entry=entry: entry.stat().st_size for entry in entries}  # type: ignore[misc]
