"""What a dataset is: the shards of its splits with their counts and checksums, and what they were made with.

    manifest.json -> Manifest.load -> opening.check_files -> handed on to every rank -> TokenDataset

`manifest.json` is written last, so a folder without one is no dataset, however many shards lie in it. Loading it
looks at no shard: see `opening` for that.
"""

import json
import math
from pathlib import Path
from typing import Literal

import xxhash
from pydantic import Field, ValidationError, model_validator

from common.files import read_file, written_aside
from common.mistakes import Mistake
from data_pipeline.flags import unpacked_flags
from data_pipeline.shard_table import ManifestPart, ShardInfo, ShardTable
from data_pipeline.shards import token_dtype

__all__ = ["FILE_NAME", "Manifest", "ShardInfo", "ShardTable", "comparable", "dropped_of", "earlier_name"]

FILE_NAME = "manifest.json"
REMEDY = "restore the file, or delete its dataset and run 'shardline data build CONFIG' again"


class SourceCounts(ManifestPart):
    """One of the sources a dataset was built from."""

    name: str = Field(min_length=1, max_length=64)
    """What it is called."""
    counts: dict[str, int] = Field(default_factory=dict)
    """What became of its documents: read, kept, and dropped by reason."""


class Manifest(ManifestPart):
    """All there is to know about a dataset without opening a shard."""

    version: int = Field(default=1, ge=1, le=1)
    """Version of this record."""
    tokenizer_fingerprint: str
    """Hash of the vocabulary the ids belong to."""
    vocab_size: int = Field(ge=1, lt=2**31)
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
    sentinel_step: Literal[1, -1] = 1
    """From the id of one to that of the next."""
    word_starts: str | None = None
    """Which ids begin a word wherever they stand, as `flags.packed_flags`; empty in datasets of old."""
    word_ends: str | None = None
    """Which ids end one, so that what follows begins another."""
    config_fingerprint: str
    """Hash of the configuration the dataset was built from."""
    splits: dict[str, ShardTable]
    """Shards of each split, in the order that numbers their tokens."""
    counts: dict[str, int] = Field(default_factory=dict)
    """What became of the documents read: kept, and dropped by reason."""
    sources: list[SourceCounts] = Field(default_factory=list)
    """What it was built from, by the numbers that shards have; empty in datasets of old, which are one source."""

    @model_validator(mode="after")
    def _holds_together(self):
        if self.dtype != token_dtype(self.vocab_size).name:
            raise Mistake(f"dtype {self.dtype} does not go with vocab_size {self.vocab_size}")
        ids = {"bos_id": self.bos_id, "eos_id": self.eos_id}
        ids |= {f"special_ids.{name}": index for name, index in self.special_ids.items()}
        if (self.first_sentinel_id is None) != (self.num_sentinels == 0):
            raise Mistake(f"first_sentinel_id {self.first_sentinel_id} does not go with {self.num_sentinels} sentinels")
        if self.first_sentinel_id is not None:
            ids |= {"first_sentinel_id": self.first_sentinel_id}
            last = self.first_sentinel_id + self.sentinel_step * (self.num_sentinels - 1)
            ids |= {"the last sentinel": last}
        for name, index in ids.items():
            if not 0 <= index < self.vocab_size:
                raise Mistake(f"{name}: {index} is not in a vocabulary of {self.vocab_size} ids")
        for name in ("word_starts", "word_ends"):
            if (flags := getattr(self, name)) is not None:
                _check_flags(name, flags, self.vocab_size)
        _check_names(self.splits)
        _check_sources(self.splits, [source.name for source in self.sources])
        return self

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what training sees, xxh3_128 hex: tokens, special ids, words; not names of files."""
        return self._fingerprint(["train"])

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes by what they cover, xxh3_128 hex each: what a checkpoint keeps of its data, see `comparable`.

        `tokens` covers the tokens of training and is the only one that checkpoints of old have; `training` covers
        the special ids and word borders too; `evaluation` the same of all other splits.
        """
        others = sorted(self.splits.keys() - {"train"})
        return {
            "tokens": self._tokens_fingerprint(),
            "training": self.fingerprint,
            "evaluation": self._fingerprint(others),
        }

    def _fingerprint(self, splits: list[str]) -> str:
        facts = self.model_dump(exclude={"splits", "counts", "sources", "config_fingerprint"})
        if self.sentinel_step == 1:
            del facts["sentinel_step"]  # as datasets of old, which do not have it
        tables = [self.splits[split] for split in splits if split in self.splits]
        digest = xxhash.xxh3_128(json.dumps([facts, splits, [len(table) for table in tables]], sort_keys=True).encode())
        for table in tables:
            digest.update(table.content)
        return digest.hexdigest()

    def _tokens_fingerprint(self) -> str:
        digests = self._table("train").digests[:, :2].tobytes().hex()
        files = [[digests[at : at + 32], digests[at + 32 : at + 64]] for at in range(0, len(digests), 64)]
        facts = [self.version, self.tokenizer_fingerprint, self.vocab_size, self.dtype, files]
        return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())

    def _table(self, split: str) -> ShardTable:
        return self.splits[split] if split in self.splits else ShardTable.of([])

    def num_tokens(self, split: str) -> int:
        """Tokens of all shards of a split."""
        return int(self._table(split).num_tokens.sum())

    def num_documents(self, split: str) -> int:
        """Documents of all shards of a split."""
        return int(self._table(split).num_documents.sum())

    @property
    def mean_document_length(self) -> float:
        """Tokens of a document on average, over all splits; infinite when there is none."""
        num_documents = sum(self.num_documents(split) for split in self.splits)
        return sum(self.num_tokens(split) for split in self.splits) / num_documents if num_documents else math.inf

    def save(self, folder: Path, name: str = FILE_NAME) -> None:
        """Writes `manifest.json` so that it is there whole or not at all."""
        with written_aside(Path(folder) / name) as file:
            file.write(self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def load(cls, folder: str | Path, name: str = FILE_NAME) -> "Manifest":
        """Reads a dataset's manifest and nothing else.

        Raises ValueError, one sentence, when it is not there or broken.
        """
        path = Path(folder) / name
        try:
            body = read_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise Mistake(f"data.path: {folder} holds no {name}; run 'shardline data build CONFIG' first") from None
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = [".".join(map(str, fault["loc"]))] if fault["loc"] else []
            reason = fault["msg"].removeprefix("Value error, ")
            raise Mistake(": ".join([str(path), *where, f"{reason}; {REMEDY}"])) from None


def dropped_of(counts: dict[str, int]) -> dict[str, int]:
    """Records dropped, by reason, among what counts of a manifest say."""
    return {name.removeprefix("dropped_"): count for name, count in counts.items() if name.startswith("dropped_")}


def earlier_name(tokens: str) -> str:
    """File with the manifest of a dataset before sources were added to it, by the `tokens` of its fingerprints."""
    return f"manifest-{tokens[:12]}.json"


def _check_flags(name: str, flags: str, count: int) -> None:
    try:
        unpacked_flags(flags, count)
    except ValueError as error:
        raise Mistake(f"{name}: {error}") from None


def _check_names(splits: dict[str, ShardTable]) -> None:
    """ValueError when a shard stands twice, as where a run would be evaluated on what it is trained on."""
    seen: set[bytes] = set()
    for split, table in splits.items():
        for name in table.names.tolist():
            if name in seen:
                raise Mistake(f"splits.{split}: shard {name.decode()} is there already")
            seen.add(name)


def _check_sources(splits: dict[str, ShardTable], names: list[str]) -> None:
    """ValueError when two sources share a name, or a shard is from one that is not there."""
    if len(set(names)) < len(names):
        raise Mistake("sources: two have one name")
    for split, table in splits.items():
        if len(table) and table.sources.max() >= max(len(names), 1):
            raise Mistake(f"splits.{split}: a shard of source {table.sources.max()}, and there are {len(names)}")


def comparable(then: dict[str, str] | str, now: dict[str, str] | str) -> tuple[dict[str, str], dict[str, str]]:
    """Of two datasets' `fingerprints` what both tell; where they were one string, it covers the tokens of training."""
    old, new = ({"tokens": prints} if isinstance(prints, str) else prints for prints in (then, now))
    return {key: old[key] for key in old if key in new}, {key: new[key] for key in old if key in new}
