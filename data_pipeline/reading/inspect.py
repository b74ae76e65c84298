"""What is in a dataset, as plain values: counts per split, and samples as the model will see them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from common.mistakes import Mistake
from data_pipeline.config import ObjectiveConfig
from data_pipeline.manifest import Manifest, ShardTable
from data_pipeline.opening import check_files
from data_pipeline.reading.batches import BatchMaker, Reading
from data_pipeline.reading.corpus import Source, apart
from data_pipeline.reading.dataset import open_shard
from data_pipeline.reading.mix_report import MixFacts, SourceFacts, source_facts
from data_pipeline.reading.packing import IGNORED, PackedBatch
from data_pipeline.shards import shard_sizes

MAX_EXAMINED = 1024
"""Samples made into batches for averages; all of them when there are fewer."""


class Decoder(Protocol):
    """What is asked of a tokenizer here."""

    @property
    def fingerprint(self) -> str:
        """Hash of its vocabulary."""

    def decode(self, ids: Sequence[int] | np.ndarray, show_special: bool = False) -> str:
        """Text of ids, with special ones shown by name if asked for."""


@dataclasses.dataclass(frozen=True)
class SplitFacts:
    """Counts of one split."""

    name: str
    num_shards: int
    num_documents: int
    num_tokens: int
    source_bytes: int
    """UTF-8 bytes of the text of its documents."""
    bytes_per_token: float
    """Source bytes for each token, those at document borders included; 0 when there are none."""
    mean_document_length: float
    """Tokens of a document, on average; 0 when there are none."""
    num_samples: int
    """Samples of one epoch."""
    num_unused_tokens: int
    """Tokens at the end that do not fill a sample."""
    num_examined: int
    """Samples, evenly spread, that the rest are averages over, counted in the batches made of them."""
    documents_per_sample: float
    """Documents, whole or cut, that a sample trains on."""
    cut_share: float
    """Share of them that are cut, by the border of a sample or for want of room."""
    padding_share: float
    """Share of positions that are padding, in both rows of an encoder-decoder."""
    target_share: float
    """Share of positions, the encoder's left aside, that have a label."""
    left_out_share: float
    """Share of the raw tokens that found no room and are not trained on."""


@dataclasses.dataclass(frozen=True)
class DocumentView:
    """One packed document, whole or cut, decoded with special tokens by name."""

    text: str
    """Its row: of a decoder or an encoder, with the label of the last position behind it where a decoder has one."""
    targets: str
    """Its labels, one after the other."""
    encoder: str | None
    """What the encoder beside the decoder reads; None for other shapes."""
    num_tokens: int
    """Positions it takes."""
    num_targets: int
    """Positions that have a label."""
    prefix_length: int
    """Leading positions that see each other both ways."""


@dataclasses.dataclass(frozen=True)
class SampleView:
    """One sample, packed alone."""

    index: int
    documents: list[DocumentView]
    num_padding: int
    num_encoder_padding: int
    """Padding of the encoder's own row; 0 for other shapes."""
    num_cut: int
    num_vanished: int
    """Pieces too short to hold a target."""
    num_left_out: int
    """Tokens that found no room."""


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """All that `inspect_dataset` found."""

    path: str
    fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    dtype: str
    counts: dict[str, int]
    """What became of the documents read by the build."""
    shape: str
    """Shape of the models whose batches are shown."""
    objective: str
    """What they are asked."""
    sequence_length: int
    """Row of a decoder or encoder."""
    target_length: int
    """Row of the decoder beside an encoder; 0 for other shapes."""
    window: int
    """Raw tokens that a sample is made of, on average where documents stay whole."""
    packing: str
    """How documents get into samples."""
    splits: list[SplitFacts]
    samples: list[SampleView]
    sources: list[SourceFacts]
    """Sources of the dataset or, where a run's config was given that mixes some, of its mix."""
    mix: MixFacts | None = None
    """What that run draws; None where there is no mix."""


def inspect_dataset(
    path: str | Path,
    tokenizer: Decoder | None = None,
    *,
    split: str = "train",
    sequence_length: int = 2048,
    target_length: int | None = None,
    num_samples: int = 2,
    objective: ObjectiveConfig | None = None,
    shape: str = "causal",
    seed: int = 0,
    packing: Literal["windows", "best_fit"] = "windows",
) -> DatasetFacts:
    """Counts of all splits and `num_samples` decoded samples, evenly spread over one split, for models of a shape.

    Without a tokenizer no samples are shown. Raises ValueError when the dataset is not there or damaged, when it was
    made with another tokenizer, or when the objective does not go with the shape or with the dataset.
    """
    manifest = Manifest.load(path)
    check_files(path, manifest, sizes=True)
    if tokenizer and tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise Mistake(
            f"{path}: built with the tokenizer {manifest.tokenizer_fingerprint}, "
            f"but this one is {tokenizer.fingerprint}; give the tokenizer it was built with"
        )
    objective = objective or ObjectiveConfig()
    reading = Reading(
        path, manifest, objective, shape, sequence_length, 1, seed, target_length=target_length, packing=packing
    )
    shown = BatchMaker(reading, split, keep_tail=True)
    return DatasetFacts(
        path=str(path),
        fingerprint=manifest.fingerprint,
        tokenizer_fingerprint=manifest.tokenizer_fingerprint,
        vocab_size=manifest.vocab_size,
        dtype=manifest.dtype,
        counts=manifest.counts,
        shape=shape,
        objective=objective.name,
        sequence_length=sequence_length,
        target_length=shown.lengths.target_row,
        window=shown.lengths.window,
        packing=packing,
        splits=[_split_facts(name, BatchMaker(reading, name)) for name in manifest.splits],
        samples=_views(shown, tokenizer, num_samples) if tokenizer else [],
        sources=source_facts(apart([Source("", Path(path), manifest)])),
    )


def _spread(count: int, total: int) -> np.ndarray:
    """At most `count` numbers below `total`, evenly spread: int64."""
    count = min(count, total)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)


def _split_facts(name: str, maker: BatchMaker) -> SplitFacts:
    dataset = maker.dataset
    shards = dataset.manifest.splits[name]
    num_documents, source_bytes = int(shards.num_documents.sum()), int(shards.source_bytes.sum())
    examined = _spread(MAX_EXAMINED, len(dataset))
    totals = dict.fromkeys(("documents", "cut", "padding", "targets", "positions", "encoder_positions", "left_out"), 0)
    for batch in maker(examined, examined):
        totals["documents"] += batch.num_documents
        totals["cut"] += batch.num_cut
        totals["targets"] += batch.num_targets
        totals["left_out"] += batch.num_left_out
        totals["padding"] += batch.num_padding + (batch.encoder.num_padding if batch.encoder else 0)
        totals["positions"] += len(batch.tokens)
        totals["encoder_positions"] += len(batch.encoder.tokens) if batch.encoder else 0
    return SplitFacts(
        name=name,
        num_shards=len(shards),
        num_documents=num_documents,
        num_tokens=dataset.num_tokens,
        source_bytes=source_bytes,
        bytes_per_token=source_bytes / max(dataset.num_tokens, 1),
        mean_document_length=dataset.num_tokens / max(num_documents, 1),
        num_samples=len(dataset),
        num_unused_tokens=dataset.num_unused_tokens,
        num_examined=len(examined),
        documents_per_sample=totals["documents"] / max(len(examined), 1),
        cut_share=totals["cut"] / max(totals["documents"], 1),
        padding_share=totals["padding"] / max(totals["positions"] + totals["encoder_positions"], 1),
        target_share=totals["targets"] / max(totals["positions"], 1),
        left_out_share=totals["left_out"] / max(len(examined) * dataset.window, 1),
    )


def _views(maker: BatchMaker, tokenizer: Decoder, num_samples: int) -> list[SampleView]:
    chosen = _spread(num_samples, len(maker.dataset))
    batches = maker(chosen, chosen)
    return [_view(index, batch, maker.shape, tokenizer) for index, batch in zip(chosen.tolist(), batches, strict=True)]


def _view(index: int, batch: PackedBatch, shape: str, tokenizer: Decoder) -> SampleView:
    return SampleView(
        index=index,
        documents=[_document(batch, number, shape, tokenizer) for number in range(batch.num_documents)],
        num_padding=batch.num_padding,
        num_encoder_padding=batch.encoder.num_padding if batch.encoder else 0,
        num_cut=batch.num_cut,
        num_vanished=batch.num_vanished,
        num_left_out=batch.num_left_out,
    )


def _document(batch: PackedBatch, number: int, shape: str, tokenizer: Decoder) -> DocumentView:
    start, stop = batch.cu_seqlens[number : number + 2].tolist()
    tokens, labels = batch.tokens[start:stop].numpy(), batch.labels[start:stop].numpy()
    last = labels[:0] if shape == "encoder" else labels[-1:]
    targets = labels[labels != IGNORED]
    encoder = None
    if batch.encoder is not None:
        a, b = batch.encoder.cu_seqlens[number : number + 2].tolist()
        encoder = tokenizer.decode(batch.encoder.tokens[a:b].numpy(), show_special=True)
    return DocumentView(
        text=tokenizer.decode([*tokens, *last[last != IGNORED]], show_special=True),
        targets=tokenizer.decode(targets, show_special=True),
        encoder=encoder,
        num_tokens=stop - start,
        num_targets=len(targets),
        prefix_length=int(batch.prefix_lengths[number]),
    )


def verify_dataset(path: str | Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Reads every byte of a dataset and compares it with its checksums; returns the number of bytes.

    `progress` is called with (bytes done, bytes in all) after each shard. Raises ValueError naming the first damaged
    file and where in it.
    """
    folder = Path(path)
    manifest = Manifest.load(folder)
    check_files(folder, manifest, sizes=True)
    dtype = np.dtype(manifest.dtype)
    tables = list(manifest.splits.values())
    total = sum(_num_bytes(table, number, dtype) for table in tables for number in range(len(table)))
    done = 0
    for table in tables:
        for number in range(len(table)):
            open_shard(folder, table, number, dtype).check_all()
            done += _num_bytes(table, number, dtype)
            if progress:
                progress(done, total)
    return done


def _num_bytes(table: ShardTable, number: int, dtype: np.dtype) -> int:
    return sum(shard_sizes(int(table.num_documents[number]), int(table.num_tokens[number]), dtype).values())
