"""What a dataset is made of, for people to look at: counted in its manifest, and measured on a bounded part of it.

    manifest -> sources, drops         of all documents
             -> some shards of each source, evenly spread -> lengths of all their documents
                -> some of these documents, evenly spread -> text -> language

However large the dataset, no more than MOST_SHARDS shards are opened and MOST_TEXTS documents decoded.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_pipeline.manifest import Manifest, dropped_of
from data_pipeline.reading.dataset import open_shard
from data_pipeline.shard_table import ShardTable
from data_pipeline.shards import ShardReader

MOST_SHARDS = 64
"""Shards that are opened, of all sources together; at least one of each."""
MOST_TEXTS = 2000
"""Documents whose language is told, of all sources together; at least one of each shard that is opened."""

Decode = Callable[[np.ndarray], str]
"""Ids of a document -> its text."""
Detect = Callable[[str], tuple[str, float]]
"""Text -> code of its language, empty where there is none, and how likely it is."""


@dataclasses.dataclass(frozen=True)
class SourceFacts:
    """One of the sources of a dataset."""

    name: str
    """What it is called."""
    num_documents: int
    """Documents kept, held out ones included."""
    num_tokens: int
    """Their tokens."""
    source_bytes: int
    """UTF-8 bytes of their text."""
    read: int
    """Documents read; 0 where the manifest does not say."""
    dropped: dict[str, int]
    """Those that were not kept, by reason."""


@dataclasses.dataclass(frozen=True)
class LanguageFacts:
    """Documents of one language among those that were looked at."""

    code: str
    """ISO 639 code; empty for texts without a word."""
    num_documents: int
    num_tokens: int
    text_bytes: int


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was found."""

    sources: list[SourceFacts]
    dropped: dict[str, int]
    """Of all sources, by reason."""
    lengths: dict[str, list[int]]
    """By source, documents of 1, 2 to 3, 4 to 7, ... tokens; those of the shards that were opened."""
    num_measured: int
    """Documents that `lengths` counts."""
    languages: list[LanguageFacts] | None
    """The most tokens first; None where nobody could tell them."""


def survey(folder: Path, manifest: Manifest, decode: Decode | None = None, detect: Detect | None = None) -> Survey:
    """Looks at a dataset whose files are there. Languages are told where both functions are given.

    Raises ValueError naming the file when a shard that is opened is damaged.
    """
    tables = _tables(manifest)
    facts = _sources_of(manifest, tables)
    each = max(MOST_SHARDS // len(facts), 1)
    lengths: dict[str, np.ndarray] = {}
    languages: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3, np.int64))
    num_opened = sum(len(_chosen(table, each)) for table in tables)
    texts_each = max(MOST_TEXTS // max(num_opened, 1), 1)
    for source, table in zip(facts, tables, strict=True):
        lengths[source.name] = np.zeros(1, np.int64)
        for reader, starts in _opened(folder, table, each, np.dtype(manifest.dtype)):
            lengths[source.name] = _added(lengths[source.name], np.diff(starts))
            if decode is not None and detect is not None:
                _tell(reader, starts, texts_each, decode, detect, languages)
    told = [LanguageFacts(code, *map(int, sums)) for code, sums in languages.items()]
    return Survey(
        facts,
        _dropped(manifest.counts),
        {name: counts.tolist() for name, counts in lengths.items()},
        int(sum(counts.sum() for counts in lengths.values())),
        sorted(told, key=lambda one: (-one.num_tokens, one.code)) if decode and detect else None,
    )


def _tables(manifest: Manifest) -> list[ShardTable]:
    """Shards of both splits of each source; of a dataset whose shards do not know theirs, all of them."""
    table = ShardTable.joined(list(manifest.splits.values()))
    return [table.of_source(number) for number in range(len(manifest.sources))] or [table]


def _sources_of(manifest: Manifest, tables: list[ShardTable]) -> list[SourceFacts]:
    found = [(source.name, source.counts) for source in manifest.sources] or [("all sources", manifest.counts)]
    return [
        SourceFacts(
            name,
            int(table.num_documents.sum()),
            int(table.num_tokens.sum()),
            int(table.source_bytes.sum()),
            counts.get("documents_read", 0),
            _dropped(counts),
        )
        for (name, counts), table in zip(found, tables, strict=True)
    ]


def _dropped(counts: dict[str, int]) -> dict[str, int]:
    """Records dropped, by reason, the most frequent first."""
    return dict(sorted(dropped_of(counts).items(), key=lambda item: (-item[1], item[0])))


def _chosen(table: ShardTable, most: int) -> np.ndarray:
    """Numbers of some shards, evenly spread."""
    return np.unique(np.linspace(0, len(table) - 1, min(most, len(table))).astype(np.int64))


def _opened(folder: Path, table: ShardTable, most: int, dtype: np.dtype) -> Iterator[tuple[ShardReader, np.ndarray]]:
    """Some shards, each with where its documents start, and where the last of them ends."""
    for number in _chosen(table, most).tolist():
        reader = open_shard(folder, table, number, dtype)
        yield reader, np.append(reader.boundaries(0, reader.num_tokens), reader.num_tokens)


def _added(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Counts by power of two, with some lengths more."""
    more = np.bincount(np.frexp(lengths.astype(np.float64))[1] - 1)
    total = np.zeros(max(len(counts), len(more)), np.int64)
    total[: len(counts)] += counts
    total[: len(more)] += more
    return total


def _tell(
    reader: ShardReader, starts: np.ndarray, most: int, decode: Decode, detect: Detect, languages: dict[str, np.ndarray]
) -> None:
    """Adds documents, tokens and bytes of some documents to those of their languages."""
    for number in np.unique(np.linspace(0, len(starts) - 2, min(most, len(starts) - 1)).astype(np.int64)).tolist():
        tokens = reader.tokens(int(starts[number]), int(starts[number + 1]))
        text = decode(tokens)
        code, _ = detect(text)
        languages[code] += (1, len(tokens), len(text.encode(errors="replace")))
