"""Datasets of made-up tokens, as a build would have left them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.manifest import Manifest, ShardInfo
from data_pipeline.shards import ShardWriter, token_dtype


def save_shard(
    path: Path, tokens: np.ndarray, lengths: np.ndarray, vocab_size: int, bytes_per_token: int = 1
) -> ShardInfo:
    """Writes documents [sum of lengths] of these lengths as one shard; what a manifest says of it."""
    with ShardWriter(path, vocab_size) as shard:
        shard.add(tokens, lengths)
    return ShardInfo(
        name=path.name,
        num_documents=shard.num_documents,
        num_tokens=shard.num_tokens,
        source_bytes=bytes_per_token * shard.num_tokens,
        checksums=shard.checksums,
    )


def save_documents(
    folder: Path, tokens: np.ndarray, lengths: np.ndarray, vocab_size: int, splits: Sequence[str] = ("train",)
) -> Path:
    """Writes documents [sum of lengths] of these lengths as the one shard of each split of a dataset."""
    shards = {split: [save_shard(folder / f"{split}-00000", tokens, lengths, vocab_size)] for split in splits}
    facts = {"tokenizer_fingerprint": "synthetic", "vocab_size": vocab_size, "dtype": token_dtype(vocab_size).name}
    facts |= {"bos_id": 1, "eos_id": 2, "special_ids": {"mask": 3}, "config_fingerprint": "synthetic"}
    Manifest(**facts, splits=shards).save(folder)  # type: ignore[arg-type]
    return folder
