"""A split of a dataset as one long row of tokens, cut into samples.

    shards, end to end:   [doc][doc   ][d|oc  ][doc][doc |      ][doc] ...
    sample i = tokens          i * W ... i * W + W, the last one included with an overlap of 1

Several sources of a mix are such rows one after the other, and no sample crosses from one into the next.
With the overlap, neighbouring samples share one token, the last target of one and the first input of the next, so
that over all samples every token is a target exactly once, except the first of each document, which nothing predicts.
That is for next_token; other objectives take every token to exactly one sample.
A sample is read as `Documents`: the pieces of documents that fall into it.
"""

import dataclasses
import functools
import resource
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.mistakes import Mistake
from data_pipeline.manifest import Manifest, ShardTable
from data_pipeline.shards import ADVICE, SUFFIXES, ShardReader, shard_sizes

MAX_OPEN_SHARDS = 4096
"""Shards mapped at once by one dataset, fewer where the process may open few files: some 8 KB of memory each."""
FILES_OF_SHARD = len(SUFFIXES)


@dataclasses.dataclass(frozen=True)
class Documents:
    """Pieces of documents, one after the other."""

    tokens: np.ndarray
    """Token ids in the dtype of the shards, [sum of lengths]."""
    lengths: np.ndarray
    """Tokens of each piece, int64 [N]."""
    is_cut: np.ndarray
    """Whether the piece lacks the beginning or the end of its document, bool [N]."""
    num_pieces: np.ndarray
    """Pieces of each sample, int64 [B], sum N."""
    sources: np.ndarray | None = None
    """Number of the source of each piece, int64 [N], where the objective asks for it."""

    def split(self) -> list[np.ndarray]:
        """The pieces as separate arrays."""
        return np.split(self.tokens, np.cumsum(self.lengths))[:-1]


@dataclasses.dataclass(frozen=True)
class Parts:
    """Ranges of a split's tokens divided at the borders of shards, int64 [number of parts] each."""

    at: np.ndarray
    """Where the part goes when all ranges are put end to end."""
    shard: np.ndarray
    """Number of the shard it lies in."""
    start: np.ndarray
    """Its first token in the shard."""
    stop: np.ndarray
    """Its end in the shard."""

    @classmethod
    def of(cls, starts: np.ndarray, stops: np.ndarray, bases: np.ndarray) -> "Parts":
        """Divides ranges [starts, stops), int64 [B]; `bases` says where each shard starts, and where the last ends."""
        first = np.searchsorted(bases, starts, side="right") - 1
        last = np.searchsorted(bases, stops, side="left") - 1
        counts = last - first + 1
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        shard = np.repeat(first, counts) + number
        start = np.maximum(np.repeat(starts, counts), bases[shard])
        stop = np.minimum(np.repeat(stops, counts), bases[shard + 1])
        filled = stop > start
        shard, start, length = shard[filled], start[filled], (stop - start)[filled]
        start = start - bases[shard]
        return cls(np.cumsum(length) - length, shard, start, start + length)

    def ranges(self, chosen: slice) -> Iterator[tuple[int, int, int]]:
        """Shard, start and stop of some parts, as Python integers."""
        return zip(self.shard[chosen].tolist(), self.start[chosen].tolist(), self.stop[chosen].tolist(), strict=True)


@dataclasses.dataclass(frozen=True)
class Samples:
    """Where B samples lie in the shards, and how documents divide them."""

    parts: Parts
    """Ranges of tokens of shards; mostly one per sample, more where it crosses into the next shard."""
    lengths: np.ndarray
    """Tokens of each piece, int64 [N]."""
    is_cut: np.ndarray
    """Whether a piece lacks the beginning or the end of its document, bool [N]."""
    first_part: np.ndarray
    """Number of each sample's first part, int64 [B + 1]."""
    first_piece: np.ndarray
    """Number of each sample's first piece, int64 [B + 1]."""
    sources: np.ndarray | None = None
    """Number of the source of each piece, int64 [N], if it was asked for."""
    keys: np.ndarray | None = None
    """Keys of what is drawn for each piece, uint64 [N], where that decided which pieces go together."""

    def __len__(self) -> int:
        return len(self.first_part) - 1


class TokenDataset:
    """Samples of `window` tokens and `overlap` more each, 0 or 1, from one split of the dataset in a folder.

    Opening touches no file; shards are mapped when first read, and their blocks checked when first touched. Those that
    were not read for longest are let go, with all that is known of them, so that memory does not grow with the dataset.
    With `keep_tail` the tokens left over after the last whole sample make a shorter one; otherwise they are not used.
    `rows` are the shards of each source and the folder that they lie in; by default, all of the split's are one row.
    `source_of_shard`, int64, numbers the source of each shard for those who ask which source a piece is from.
    """

    passes_differ = False
    """Whether the same sample holds other documents when the split is gone through again."""

    def __init__(
        self,
        folder: str | Path,
        manifest: Manifest,
        split: str,
        window: int,
        *,
        overlap: int = 1,
        keep_tail: bool = False,
        rows: Sequence[tuple[Path, ShardTable]] | None = None,
        source_of_shard: np.ndarray | None = None,
    ):
        self.folder = Path(folder)
        self.split = split
        self.window = window
        self.overlap = overlap
        self.manifest = manifest
        if split not in manifest.splits:
            raise Mistake(f"{self.folder}: no split '{split}'; it has {', '.join(sorted(manifest.splits))}")
        rows = rows or [(self.folder, manifest.splits[split])]
        self._folders = [folder for folder, _ in rows]
        self._shards = ShardTable.joined([shards for _, shards in rows]) if len(rows) > 1 else rows[0][1]
        self._row_shards = np.cumsum([0, *(len(shards) for _, shards in rows)])
        self._source_of_shard = source_of_shard
        self._starts = np.concatenate(([0], np.cumsum(self._shards.num_tokens)))
        self._row_starts = self._starts[self._row_shards]
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._max_open = min(MAX_OPEN_SHARDS, _open_files() // (FILES_OF_SHARD + 1))
        self.num_tokens = int(self._starts[-1])
        self._keep_tail = keep_tail
        self.samples_of_rows: np.ndarray = self.samples_in(np.diff(self._row_starts))
        """Samples of each row, which follow each other: int64 [number of rows]."""
        self._first_samples = np.concatenate(([0], np.cumsum(self.samples_of_rows)))
        self.dtype = np.dtype(manifest.dtype)

    def __len__(self) -> int:
        """Number of samples."""
        return int(self._first_samples[-1])

    def samples_in(self, num_tokens: np.ndarray) -> np.ndarray:
        """Samples of rows of so many tokens, int64 [N] both."""
        usable = np.maximum(num_tokens - self.overlap, 0)
        return (usable + self.window - 1 if self._keep_tail else usable) // self.window

    @property
    def num_unused_tokens(self) -> int:
        """Tokens at the end of the split that no sample has; with an overlap, that none has as a target."""
        usable = np.diff(self._row_starts) - self.overlap
        return int(np.maximum(usable - self.samples_of_rows * self.window, 0).sum())

    def sample(self, index: int) -> list[np.ndarray]:
        """The pieces of documents in one sample, in order, in the dtype of the shards."""
        return self.read(self.locate(np.array([index]))).split()

    def locate(self, indices: np.ndarray, passes: np.ndarray | None = None) -> "Samples":
        """Finds samples, integers [B] within [0, len), and the documents in them; reads no tokens.

        How often the split was gone through before, `passes`, int64 [B], makes no difference to windows.
        Its cost is per shard touched more than per sample: ask for many at once.
        Raises ValueError naming the file if an index is damaged.
        """
        assert not len(indices) or 0 <= indices.min() <= indices.max() < len(self), indices
        row = np.searchsorted(self._first_samples, indices, side="right") - 1
        starts = self._row_starts[row] + (indices - self._first_samples[row]) * self.window
        stops = np.minimum(starts + self.window + self.overlap, self._row_starts[row + 1])
        parts = Parts.of(starts, stops, self._starts)
        row_ends = np.concatenate(([0], np.cumsum(stops - starts)))
        places, begins, ends = [parts.at], np.empty(len(parts.at), bool), np.empty(len(parts.at), bool)
        for shard in np.unique(parts.shard).tolist():
            here = np.flatnonzero(parts.shard == shard)
            division = self._reader(shard).divide(parts.start[here], parts.stop[here])
            places.append(division.starts + np.repeat(parts.at[here] - parts.start[here], division.counts))
            begins[here], ends[here] = division.begins, division.ends
        piece_starts = np.sort(np.concatenate(places))
        first = np.searchsorted(piece_starts, parts.at)
        last = np.searchsorted(piece_starts, parts.at + parts.stop - parts.start) - 1
        is_cut = np.zeros(len(piece_starts), bool)
        is_cut[first] = ~begins
        is_cut[last] |= ~ends
        return Samples(
            parts=parts,
            lengths=np.diff(piece_starts, append=row_ends[-1]),
            is_cut=is_cut,
            first_part=np.searchsorted(parts.at, row_ends),
            first_piece=np.searchsorted(piece_starts, row_ends),
            sources=self._sources_of(parts, piece_starts),
        )

    def _sources_of(self, parts: Parts, piece_starts: np.ndarray) -> np.ndarray | None:
        if self._source_of_shard is None:
            return None
        return self._source_of_shard[parts.shard[np.searchsorted(parts.at, piece_starts, side="right") - 1]]

    def read(self, samples: "Samples", begin: int = 0, end: int | None = None) -> Documents:
        """The documents in the located samples [begin, end), all of them unless told otherwise.

        Raises ValueError naming the file if a shard is damaged.
        """
        end = len(samples) if end is None else end
        pieces = slice(samples.first_piece[begin], samples.first_piece[end])
        lengths = samples.lengths[pieces]
        tokens = np.empty(lengths.sum(), self.dtype)
        done = 0
        parts = slice(samples.first_part[begin], samples.first_part[end])
        for shard, start, stop in samples.parts.ranges(parts):
            tokens[done : done + stop - start] = self._reader(shard).tokens(start, stop)
            done += stop - start
        num_pieces = np.diff(samples.first_piece[begin : end + 1])
        sources = None if samples.sources is None else samples.sources[pieces]
        return Documents(tokens, lengths, samples.is_cut[pieces], num_pieces, sources)

    def _reader(self, shard: int) -> ShardReader:
        reader = self._open.get(shard)
        if reader is None:
            reader = self._open[shard] = open_shard(self._folder_of(shard), self._shards, shard, self.dtype)
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
        elif len(self._shards) > self._max_open:
            self._open.move_to_end(shard)
        return reader

    def _folder_of(self, shard: int) -> Path:
        return self._folders[np.searchsorted(self._row_shards, shard, side="right") - 1]


def open_shard(folder: Path, shards: ShardTable, number: int, dtype: np.dtype) -> ShardReader:
    """Opens a shard of a table. ValueError naming the file when it is not the one that was written."""
    name = shards.name(number)
    counts = int(shards.num_documents[number]), int(shards.num_tokens[number])
    digest = shards.digests[number, SUFFIXES.index(".sums")].tobytes()
    reader = ShardReader(folder / name, sizes=shard_sizes(*counts, dtype), sums_digest=digest)
    if (reader.num_documents, reader.num_tokens, reader.dtype) != (*counts, dtype):
        raise Mistake(f"{folder / name}.idx: not the shard its manifest describes; {ADVICE}")
    return reader


@functools.cache
def _open_files() -> int:
    """How many files this process may open, once it has asked for as many as are of use here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = (FILES_OF_SHARD + 1) * MAX_OPEN_SHARDS
    wanted = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return enough if soft == resource.RLIM_INFINITY else soft
