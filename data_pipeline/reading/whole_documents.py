"""A split of a dataset as rows of whole documents, the other choice beside the windows of `TokenDataset`.

    sample i -> block i // R, row i % R
    block    -> documents that start in its T tokens -> fill (filling.py) -> pieces of each row

A dataset that is mixed from sources has blocks of each of them. Which rows there are follows from the number of tokens
alone, and a block is worked out from its documents' lengths when a sample of it is first asked for, so there is no
index to build, to store or to hand on. The same rows come out in whatever order they are asked for.

A document belongs to the block it starts in, even where it reaches beyond; only one longer than a row, which is cut in
any case, is cut where its block ends.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.manifest import Manifest
from data_pipeline.reading.budget import DrawnCosts
from data_pipeline.reading.dataset import Parts, Samples, TokenDataset
from data_pipeline.reading.draws import before
from data_pipeline.reading.filling import Plan, Stretches, fill
from data_pipeline.shard_table import ShardTable

MAX_KEPT_PIECES = 1 << 22
"""Pieces of documents whose rows are remembered: some 120 MB at most."""
PIECES_AT_ONCE = 1 << 18
"""Pieces that are given their rows together, about: blocks are filled in step with each other."""


class Rows(NamedTuple):
    """Pieces of the rows of a block, row after row; int64 [P] unless said otherwise."""

    start: np.ndarray
    """First token in the split."""
    lengths: np.ndarray
    """Tokens, int32."""
    keys: np.ndarray
    """Keys of what is drawn for them, uint64."""
    is_cut: np.ndarray
    """Whether the piece lacks the beginning or the end of its document, bool."""
    first: np.ndarray
    """Number of each row's first piece, and of all pieces at the end: int32 [R + 1]."""

    def select(self, begin: int, end: int, first: np.ndarray) -> "Rows":
        """A copy of some of the pieces, in other rows."""
        pieces = slice(begin, end)
        start, lengths, keys, is_cut = (values[pieces].copy() for values in self[:4])
        return Rows(start, lengths, keys, is_cut, first)


class WholeDocuments(TokenDataset):
    """Samples of whole documents from one split of the dataset in a folder.

    The last sample may hold less than the others; all tokens are in one. Memory does not grow with the dataset.
    """

    passes_differ = True

    def __init__(
        self,
        folder: str | Path,
        manifest: Manifest,
        split: str,
        plan: Plan,
        costs: DrawnCosts,
        *,
        rows: Sequence[tuple[Path, ShardTable]] | None = None,
    ):
        self._plan, self._costs = plan, costs
        window = max(plan.tokens // plan.num_rows, 1)
        super().__init__(folder, manifest, split, window, overlap=plan.overlap, rows=rows)
        self._first_blocks = np.concatenate(([0], np.cumsum(-(-self.samples_of_rows // plan.num_rows))))
        self._mean_length = self.num_tokens / max(int(self._shards.num_documents.sum()), 1)
        self._kept: OrderedDict[tuple[int, int], Rows] = OrderedDict()
        self._num_kept = 0

    def samples_in(self, num_tokens: np.ndarray) -> np.ndarray:
        """Samples of sources of so many tokens, int64 [N] both."""
        whole, rest = np.divmod(num_tokens, self._plan.tokens)
        return whole * self._plan.num_rows + -(-rest * self._plan.num_rows // self._plan.tokens)

    @property
    def num_unused_tokens(self) -> int:
        """None."""
        return 0

    def locate(self, indices: np.ndarray, passes: np.ndarray | None = None) -> Samples:
        """Finds samples, integers [B] within [0, len), and the documents in them; reads no tokens.

        `passes`, int64 [B], says how often their source was gone through before: what is drawn differs between passes,
        and which documents share a row may with it. Raises ValueError naming the file if an index is damaged.
        """
        assert not len(indices) or 0 <= indices.min() <= indices.max() < len(self), indices
        passes = np.zeros_like(indices) if passes is None else passes
        source = np.searchsorted(self._first_samples, indices, side="right") - 1
        blocks, rows = np.divmod(indices - self._first_samples[source], self._plan.num_rows)
        blocks += self._first_blocks[source]
        wanted = list(zip(blocks.tolist(), passes.tolist(), strict=True))
        found = {key: self._kept[key] for key in set(wanted) & self._kept.keys()}
        for key in found:
            self._kept.move_to_end(key)
        missing = sorted(set(wanted) - found.keys())
        at_once = max(1, int(PIECES_AT_ONCE * self._mean_length / self._plan.tokens))
        parts: list[Rows | None] = [None] * len(wanted)
        for start in range(0, max(len(missing), 1), at_once):
            found |= self._filled(missing[start : start + at_once])
            for number, key in enumerate(wanted):
                if parts[number] is None and key in found:
                    begin, end = found[key].first[rows[number] : rows[number] + 2].tolist()
                    parts[number] = found[key].select(begin, end, np.array([0, end - begin]))
            found = {}
        return self._samples([part for part in parts if part is not None])

    def _samples(self, rows: list[Rows]) -> Samples:
        """Samples of one row each."""
        if not rows:
            nothing = np.zeros(0, np.int64)
            parts = Parts(nothing, nothing, nothing, nothing)
            return Samples(parts, nothing, nothing.astype(bool), np.zeros(1, np.int64), np.zeros(1, np.int64))
        start, lengths, keys, is_cut = (np.concatenate(values) for values in list(zip(*rows, strict=True))[:4])
        lengths = lengths.astype(np.int64)
        shard = np.searchsorted(self._starts, start, side="right") - 1
        start = start - self._starts[shard]
        first = np.cumsum([0, *(len(row.start) for row in rows)])
        return Samples(Parts(before(lengths), shard, start, start + lengths), lengths, is_cut, first, first, keys=keys)

    def _filled(self, keys: list[tuple[int, int]]) -> dict[tuple[int, int], Rows]:
        """Rows of blocks, each in one pass, which are remembered."""
        if not keys:
            return {}
        blocks, passes = np.array(keys, np.int64).T
        source, blocks = self._in_sources(blocks)
        num_rows = np.minimum(self._plan.num_rows, self.samples_of_rows[source] - blocks * self._plan.num_rows)
        stretches, row = fill(self._stretches(source, blocks, passes), num_rows, self._plan, self._costs)
        is_cut = ~(stretches.begins & stretches.ends)
        start = stretches.start + self._row_starts[source][stretches.block]
        everything = Rows(start, stretches.lengths.astype(np.int32), self._costs.keys(stretches), is_cut, row)
        number = stretches.block * self._plan.num_rows + row
        first = np.searchsorted(number, np.arange(len(keys) * self._plan.num_rows + 1)).astype(np.int32)
        result = {}
        for place, key in enumerate(keys):
            own = first[place * self._plan.num_rows :][: self._plan.num_rows + 1]
            result[key] = everything.select(int(own[0]), int(own[-1]), own - own[0])
            self._keep(key, result[key])
        return result

    def _keep(self, key: tuple[int, int], rows: Rows) -> None:
        self._kept[key] = rows
        self._num_kept += len(rows.start)
        while self._num_kept > MAX_KEPT_PIECES:
            self._num_kept -= len(self._kept.popitem(last=False)[1].start)

    def _in_sources(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source that each block is of, and its number there: int64 [B]."""
        source = np.searchsorted(self._first_blocks, blocks, side="right") - 1
        return source, blocks - self._first_blocks[source]

    def _stretches(self, source: np.ndarray, blocks: np.ndarray, passes: np.ndarray) -> Stretches:
        """The documents of blocks of sources, int64 [B], whole or cut where these end, in the order of their tokens.

        They start where they start in their source, so that what is drawn for them depends on nothing else.
        """
        begin = self._row_starts[source] + blocks * self._plan.tokens
        end = np.minimum(begin + self._plan.tokens, self._row_starts[source + 1])
        parts = Parts.of(begin, end, self._starts)
        block = np.searchsorted(np.cumsum(end - begin), parts.at, side="right")
        found = []
        for shard in np.unique(parts.shard).tolist():
            here = np.flatnonzero(parts.shard == shard)
            found.append(self._in_shard(shard, parts.start[here], parts.stop[here], block[here]))
        stretches = Stretches.joined(found)
        stretches.start[:] -= self._row_starts[source][stretches.block]
        stretches = stretches.select(np.lexsort((stretches.start, stretches.block)))
        stretches.passes[:] = passes[stretches.block]
        return stretches

    def _in_shard(self, shard: int, starts: np.ndarray, stops: np.ndarray, block: np.ndarray) -> Stretches:
        """Documents of the ranges [starts, stops) of a shard's tokens, int64 [n], that belong to blocks."""
        longest, base = self._plan.longest, int(self._starts[shard])
        # as far as has to be seen to know which documents are longer than that
        low = np.maximum(starts - longest, 0)
        high = np.minimum(stops + longest, int(self._shards.num_tokens[shard]))
        division = self._reader(shard).divide(low, high)
        count = division.counts + 1
        part = np.repeat(np.arange(len(starts)), count)
        at, last = before(count), np.cumsum(count) - 1
        begin = np.empty(len(part), np.int64)
        inner = np.ones(len(part), bool)
        inner[at] = False
        begin[at], begin[inner] = low, division.starts
        end = np.append(begin[1:], 0)
        end[last] = high
        begins, ends = np.ones(len(part), bool), np.ones(len(part), bool)
        begins[at], ends[last] = division.begins, division.ends
        is_short = begins & ends & (end - begin <= longest)
        begin_cut, end_cut = np.maximum(begin, starts[part]), np.minimum(end, stops[part])
        # what follows a cut begins with the last target before it, where there is one
        shared = np.where(end_cut < end, self._plan.overlap, 0)
        tail = (begin_cut > begin) | ~begins
        belongs = np.where(is_short, (starts[part] <= begin) & (begin < stops[part]), begin_cut < end_cut)
        belongs &= is_short | ~tail | (end - begin_cut > self._plan.overlap) | ~ends
        begins, ends = begins & (begin >= starts[part]), ends & (end_cut + shared >= end)
        begin = np.where(is_short, begin, begin_cut)
        end = np.where(is_short, end, np.minimum(end_cut + shared, end))
        found = Stretches(block[part], base + begin, end - begin, begins | is_short, ends | is_short, part * 0)
        return found.select(belongs)
