"""Makes packed batches of samples of a dataset, whichever samples are wanted.

Reading (dataset, objective, shape, lengths, rank) -> BatchMaker
samples, counters -> dataset.read -> fit -> objective -> pack -> PackedBatch
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from common.mistakes import Mistake
from data_pipeline.config import ObjectiveConfig
from data_pipeline.manifest import Manifest
from data_pipeline.reading.budget import DrawnCosts, best_fit_plan, fitted, sample_lengths
from data_pipeline.reading.corpus import Source, names_of, numbers_of
from data_pipeline.reading.dataset import Documents, Samples, TokenDataset
from data_pipeline.reading.draws import piece_keys
from data_pipeline.reading.grid import objective_for
from data_pipeline.reading.objectives import NO_EXAMPLES, NextToken, tells_sources_apart
from data_pipeline.reading.packing import LAYOUTS, Buffers, PackedBatch, Row, pack_layout
from data_pipeline.reading.whole_documents import WholeDocuments
from data_pipeline.vocabulary import Vocabulary

SAMPLES_AT_ONCE = 64
"""Samples read and laid out together; more would leave the CPU's cache."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How one rank reads a dataset: what its training and its evaluation batches have in common."""

    folder: str | Path
    """Where the dataset lies."""
    manifest: Manifest
    """What is in it; whoever loaded it has seen that its files are there."""
    objective: ObjectiveConfig
    """What the model is asked."""
    shape: str
    """Shape of the model."""
    sequence_length: int
    """Row of a decoder or encoder, in encdec of the encoder, in tokens."""
    micro_batch_size: int
    """Samples of a batch."""
    seed: int
    """Decides the order of the samples and what is drawn for them."""
    rank: int = 0
    """Number of this rank among those that share the samples."""
    world_size: int = 1
    """How many share them."""
    target_length: int | None = None
    """Row of the decoder in encdec; empty means what the objective makes of a full row of the encoder."""
    pad_id: int | None = None
    """What fills rows; empty means the tokenizer's own."""
    sources: tuple[Source, ...] = ()
    """What a mix draws from, see `corpus.sources_of`; empty means the dataset as a whole."""
    packing: Literal["windows", "best_fit"] = "windows"
    """How documents get into samples: as `data.packing` says."""

    @property
    def drawn(self) -> tuple[Source, ...]:
        """The sources that samples are cut from."""
        return self.sources or (Source("", Path(self.folder), self.manifest),)


class BatchMaker:
    """Makes packed batches of samples of one split; the same samples and counters always give the same batches.

    Raises ValueError when the objective means nothing for the shape, when rows are too short for it, or when the
    tokenizer lacks a piece that it needs. With `keep_tail` the last sample of the split may be shorter.
    """

    def __init__(self, reading: Reading, split: str, *, keep_tail: bool = False):
        manifest, objective = reading.manifest, reading.objective
        self.vocabulary = Vocabulary.of(manifest)
        self._pad_id = self.vocabulary.pad if reading.pad_id is None else reading.pad_id
        if not 0 <= self._pad_id < manifest.vocab_size:
            raise Mistake(f"{reading.folder}: pad id {self._pad_id} is not in its vocabulary of {manifest.vocab_size}")
        told_apart = tells_sources_apart(objective)
        names = names_of(reading.drawn) if told_apart else []
        self._objective = objective_for(objective, reading.shape, self.vocabulary, names)
        self.lengths = sample_lengths(
            objective,
            reading.shape,
            reading.sequence_length,
            reading.target_length,
            self.vocabulary,
            manifest.mean_document_length,
            names,
        )
        self._always_fits = isinstance(self._objective, NextToken)
        self.dataset = self._dataset(reading, split, keep_tail, names)
        self.micro_batch_size = reading.micro_batch_size
        self.shape = reading.shape
        self._seed = reading.seed
        row = self.lengths.target_row or self.lengths.row
        self._buffers = Buffers(self.micro_batch_size * row)
        is_paired = self.shape == "encdec"
        self._encoder_buffers = Buffers(self.micro_batch_size * self.lengths.row, 2) if is_paired else None

    def _dataset(self, reading: Reading, split: str, keep_tail: bool, names: Sequence[str]) -> TokenDataset:
        """The samples of a split; those of whole documents may have rows of other lengths."""
        where, manifest = (reading.folder, reading.manifest, split), reading.manifest
        rows = [(source.folder, source.shards(split)) for source in reading.sources]
        if reading.packing == "windows":
            return TokenDataset(
                *where,
                self.lengths.window,
                overlap=int(self._always_fits),
                keep_tail=keep_tail,
                rows=rows,
                source_of_shard=numbers_of(reading.drawn, split) if names else None,
            )
        if names:
            raise Mistake(
                "data.packing: best_fit does not go with objectives that depend on the source; remove `sources` from "
                "objective.parts, or use windows"
            )
        self.lengths, plan = best_fit_plan(
            reading.objective,
            reading.shape,
            self.lengths,
            reading.target_length,
            self.vocabulary,
            manifest.mean_document_length,
        )
        return WholeDocuments(*where, plan, DrawnCosts(self._objective, reading.shape, reading.seed), rows=rows)

    def __call__(
        self, counters: np.ndarray, samples: np.ndarray, passes: np.ndarray | None = None
    ) -> Iterator[PackedBatch]:
        """Packs samples, int64 [B], drawn by `counters`, int64 [B], micro_batch_size to a batch.

        `passes`, int64 [B], says how often their source was gone through before, by default as often as the split.
        Several micro-batches are read and laid out together, since numpy's fixed costs are per call.
        """
        located = self.dataset.locate(samples, counters // max(len(self.dataset), 1) if passes is None else passes)
        step = max(1, SAMPLES_AT_ONCE // self.micro_batch_size) * self.micro_batch_size
        for start in range(0, len(samples), step):
            stop = min(start + step, len(samples))
            documents = self.dataset.read(located, start, stop)
            yield from self._pack(documents, self._keys(located, counters, start, stop))

    def batch(self, counters: np.ndarray, samples: np.ndarray) -> PackedBatch:
        """One batch of at most micro_batch_size samples, which may be none at all."""
        if not len(samples):
            layout = LAYOUTS[self.shape](NO_EXAMPLES, self.vocabulary.bos)
            return pack_layout(layout, np.zeros(0, bool), self._pad_id, self._row())
        return next(self(counters, samples))

    def _row(self) -> Row:
        return Row(self._buffers.take(), self._encoder_buffers.take() if self._encoder_buffers else None)

    def _keys(self, located: Samples, counters: np.ndarray, start: int, stop: int) -> np.ndarray:
        """One for each piece of the samples [start, stop), uint64."""
        first = located.first_piece[start : stop + 1]
        if located.keys is None:
            return piece_keys(self._seed, counters[start:stop], np.diff(first))
        return located.keys[first[0] : first[-1]]

    def _pack(self, documents: Documents, keys: np.ndarray) -> Iterator[PackedBatch]:
        left_out = np.zeros(len(documents.num_pieces), np.int64)
        if not self._always_fits:
            documents, keys, left_out = fitted(
                self._objective, documents, keys, self.shape, self.lengths, self.vocabulary
            )
        examples = self._objective(documents, keys)
        layout = LAYOUTS[self.shape](examples, self.vocabulary.bos)
        num_examples, is_cut = documents.num_pieces, documents.is_cut
        if examples.pieces is not None:
            sample = np.repeat(np.arange(len(num_examples)), num_examples)[examples.pieces]
            num_examples, is_cut = np.bincount(sample, minlength=len(num_examples)), is_cut[examples.pieces]
        begins = range(0, len(left_out), self.micro_batch_size)
        sizes, left_out = np.add.reduceat(num_examples, begins), np.add.reduceat(left_out, begins)
        cuts = np.split(is_cut, np.cumsum(sizes)[:-1])
        for part, is_cut, count in zip(layout.split(sizes), cuts, left_out.tolist(), strict=True):
            yield pack_layout(part, is_cut, self._pad_id, self._row(), count)
