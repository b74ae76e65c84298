"""Our loader against megatron-core's GPTDataset on the same shard: tokens per CPU-second in random order, start-up.

    python -m benchmarks.loader [--quick] [--check] [--json FILE]

Both read rows of 2,048 tokens of the same synthetic documents, in random order, from one shard in the page cache. A
figure is tokens divided by CPU seconds of the whole process, all threads included. The peer comes in two forms:
- same work: positions restart and the loss is masked at the end of documents, rows are collated into batches. No
  attention masks, which would cost it a hundred times more and which packed batches do not need;
- bare rows: its cheapest settings. Documents are ignored, rows are handed out one by one and never make a batch.
Ours is one and the same: documents apart, batches packed in the loader's thread, and in the row with the goal the
checksum of every block at its first touch. Start-up is the wall time from opening the dataset to the first batch,
imports excluded, the median of five. With 50 sources, each a shard of its own, a mix of unequal weights decides which
sample is next: the goals are the same.
"""

import argparse
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from benchmarks.table import Row, parser, show
from data_pipeline.config import MixConfig, MixSourceConfig, ObjectiveConfig
from data_pipeline.manifest import Manifest, ShardInfo, ShardTable, SourceCounts
from data_pipeline.reading.batches import Reading
from data_pipeline.reading.corpus import Mixing, Pace, sources_of
from data_pipeline.reading.loader import Loader
from data_pipeline.shards import ShardWriter

SEQUENCE_LENGTH = 2048
MICRO_BATCH_SIZE = 16
GLOBAL_BATCH_SIZE = 64
VOCAB_SIZE = 32000
BOS_ID, EOS_ID, PAD_ID = 1, 2, 3
MEAN_LENGTH = 600
STARTUP_LIMIT = 0.1
NUM_SOURCES = 50


def write_documents(folder: Path, num_tokens: int, num_sources: int = 1) -> Path:
    """Writes a dataset of one shard a source of documents with lognormal lengths; returns its folder."""
    shards = [_write_shard(folder, number, num_tokens // num_sources) for number in range(num_sources)]
    Manifest(
        tokenizer_fingerprint="synthetic",
        vocab_size=VOCAB_SIZE,
        dtype=np.dtype(np.uint16).name,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        config_fingerprint="synthetic",
        splits={"train": ShardTable.of(shards)},
        sources=[SourceCounts(name=f"source-{number}") for number in range(num_sources)],
    ).save(folder)
    return folder


def _write_shard(folder: Path, number: int, num_tokens: int) -> ShardInfo:
    rng = np.random.default_rng([num_tokens, number])
    name = f"train-{number:05d}"
    with ShardWriter(folder / name, VOCAB_SIZE) as writer:
        while writer.num_tokens < num_tokens:
            lengths = np.maximum(rng.lognormal(np.log(MEAN_LENGTH) - 0.5, 1.0, 5000), 2).astype(np.int64)
            ends = np.cumsum(lengths)
            tokens = rng.integers(PAD_ID + 1, VOCAB_SIZE, ends[-1], dtype=np.int32)
            tokens[ends - lengths], tokens[ends - 1] = BOS_ID, EOS_ID
            writer.add(tokens, lengths)
    return ShardInfo(
        name=name,
        num_documents=writer.num_documents,
        num_tokens=writer.num_tokens,
        checksums=writer.checksums,
        source_bytes=4 * writer.num_tokens,
        source=number,
    )


def our_loader(folder: Path) -> Loader:
    """Our loader as one rank would use it; several sources are mixed by weights that differ a hundredfold."""
    manifest = Manifest.load(folder)
    names = [source.name for source in manifest.sources]
    mix = MixConfig(
        sources=[MixSourceConfig(name=name, weight=100 ** (number / len(names))) for number, name in enumerate(names)]
    )
    is_mixed = len(names) > 1
    reading = Reading(
        folder,
        manifest,
        objective=ObjectiveConfig(),
        shape="causal",
        sequence_length=SEQUENCE_LENGTH,
        micro_batch_size=MICRO_BATCH_SIZE,
        seed=1,
        pad_id=PAD_ID,
        sources=sources_of(mix, folder, manifest, {}) if is_mixed else (),
    )
    mixing = Mixing(mix, (), Pace(GLOBAL_BATCH_SIZE, SEQUENCE_LENGTH)) if is_mixed else None
    return Loader(reading, global_batch_size=GLOBAL_BATCH_SIZE, mixing=mixing)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of this process, all threads, that some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def our_rates(folder: Path) -> tuple[float, float]:
    """Tokens per CPU-second over an epoch with every block checked, and over the next with none left to check."""
    with our_loader(folder) as loader:
        num_batches = loader.num_samples // GLOBAL_BATCH_SIZE
        num_tokens = num_batches * GLOBAL_BATCH_SIZE * SEQUENCE_LENGTH

        def epoch() -> None:
            for _ in range(num_batches):
                next(loader)

        return num_tokens / cpu_seconds(epoch), num_tokens / cpu_seconds(epoch)


class Tokenizer:
    """As much of a tokenizer as GPTDataset asks for."""

    vocab_size = VOCAB_SIZE
    eod = EOS_ID
    pad = PAD_ID
    unique_identifiers = {"name": "synthetic"}


def peer_dataset(folder: Path, cache: Path, documents_apart: bool):
    """GPTDataset over the whole shard; `documents_apart` restarts positions and masks the loss at their ends."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=SEQUENCE_LENGTH,
        split="1,0,0",
        path_to_cache=str(cache),
        tokenizer=Tokenizer(),
        reset_position_ids=documents_apart,
        reset_attention_mask=False,
        eod_mask_loss=documents_apart,
        create_attention_mask=False,
    )
    prefix = str(folder / "train-00000")
    indexed = GPTDataset.build_low_level_dataset(prefix, config)
    documents = np.arange(GPTDataset.numel_low_level_dataset(indexed), dtype=np.int32)
    return GPTDataset(indexed, prefix, documents, None, Split.train, config)


def bare_rate(folder: Path, cache: Path) -> float:
    """GPTDataset's tokens per CPU-second over an epoch of bare rows."""
    dataset = peer_dataset(folder, cache, documents_apart=False)

    def read() -> None:
        for index in range(len(dataset)):
            dataset[index]

    return len(dataset) * SEQUENCE_LENGTH / cpu_seconds(read)


def same_work_rate(folder: Path, cache: Path) -> float:
    """GPTDataset's tokens per CPU-second over a quarter of an epoch, documents apart and collated."""
    dataset = peer_dataset(folder, cache, documents_apart=True)
    num_batches = len(dataset) // MICRO_BATCH_SIZE // 4

    def read() -> None:
        for number in range(num_batches):
            default_collate([dataset[number * MICRO_BATCH_SIZE + row] for row in range(MICRO_BATCH_SIZE)])

    return num_batches * MICRO_BATCH_SIZE * SEQUENCE_LENGTH / cpu_seconds(read)


def copy_rate(folder: Path) -> float:
    """Tokens per CPU-second when the mapped file is only copied, from one end to the other."""
    tokens = np.memmap(folder / "train-00000.bin", dtype=np.uint16, mode="r")
    copy = np.empty(1 << 20, np.uint16)

    def read() -> None:
        for start in range(0, len(tokens), len(copy)):
            part = tokens[start : start + len(copy)]
            copy[: len(part)] = part

    read()
    return len(tokens) / cpu_seconds(read)


def startup_seconds(folder: Path) -> float:
    """Wall seconds from opening to the first batch, median of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        with our_loader(folder) as loader:
            next(loader)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def peer_startup_seconds(folder: Path, cache: Path) -> float:
    """Wall seconds from opening to the first row when GPTDataset has to build its index."""
    start = time.perf_counter()
    peer_dataset(folder, cache, documents_apart=False)[0]
    return time.perf_counter() - start


def measure(folder: Path, sizes: list[int]) -> list[Row]:
    """All rows; the throughput is that of the last, largest size."""
    datasets = {size: write_documents(folder / str(size), size) for size in sizes}
    largest = datasets[sizes[-1]]
    cache = folder / "cache"
    peer_start = peer_startup_seconds(largest, cache)
    same_work, bare = same_work_rate(largest, cache), bare_rate(largest, cache)
    checked, known = our_rates(largest)
    mixed = write_documents(folder / "mixed", sizes[-1], NUM_SOURCES)
    mixed_checked, mixed_known = our_rates(mixed)
    unit, size_name = 1e-6, f"{sizes[-1] // 10**6} M tokens"
    starts = [
        Row(f"start-up at {size // 10**6} M tokens, s", startup_seconds(path), "limit", STARTUP_LIMIT, 1.0, True)
        for size, path in datasets.items()
    ]
    rate = "Mtoken per CPU-second"
    return [
        Row(f"{rate}, checking all of {size_name}", checked * unit, "GPTDataset, same work", same_work * unit, 10.0),
        Row(f"{rate}, checked before", known * unit, "GPTDataset, same work", same_work * unit),
        Row(f"{rate}, checking all of {size_name}", checked * unit, "GPTDataset, bare rows", bare * unit),
        Row(f"{rate}, checking all of {size_name}", checked * unit, "memcpy of .bin", copy_rate(largest) * unit),
        Row(f"{rate}, {NUM_SOURCES} sources, checking all", mixed_checked * unit, "same work", same_work * unit, 10.0),
        Row(f"{rate}, {NUM_SOURCES} sources, checked before", mixed_known * unit, "ours, one source", known * unit),
        *starts,
        Row(f"start-up, {NUM_SOURCES} sources, s", startup_seconds(mixed), "limit", STARTUP_LIMIT, 1.0, True),
        Row(f"start-up at {size_name}, s", starts[-1].ours, "GPTDataset, no index yet", peer_start, None, True),
    ]


def main(args: argparse.Namespace) -> int:
    """Runs the comparison in a folder that is deleted afterwards."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    sizes = [2_000_000, 20_000_000] if args.quick else [2_000_000, 20_000_000, 200_000_000]
    folder = Path(tempfile.mkdtemp(prefix="shardline-loader-"))
    try:
        rows = measure(folder, sizes)
    finally:
        shutil.rmtree(folder)
    return show("Loader: rows of 2,048 tokens in random order", rows, args)


if __name__ == "__main__":
    sys.exit(main(parser(__doc__.splitlines()[0]).parse_args()))
