"""Datasets of made-up tokens, as a build would have left them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.manifest import Manifest, ShardInfo
from data_pipeline.shards import ShardWriter


def save_documents(
    folder: Path, tokens: np.ndarray, lengths: np.ndarray, vocab_size: int, splits: Sequence[str] = ("train",)
) -> Path:
    """Writes documents [sum of lengths] of these lengths as the one shard of each split of a dataset."""
    shards = {}
    for split in splits:
        with ShardWriter(folder / f"{split}-00000", vocab_size) as shard:
            shard.add(tokens, lengths)
        counts = {"num_documents": shard.num_documents, "num_tokens": shard.num_tokens}
        counts["source_bytes"] = shard.num_tokens
        shards[split] = [ShardInfo(name=f"{split}-00000", checksums=shard.checksums, **counts)]
        dtype = shard.dtype.name
    facts = {"tokenizer_fingerprint": "synthetic", "vocab_size": vocab_size, "dtype": dtype}
    facts |= {"bos_id": 1, "eos_id": 2, "special_ids": {"mask": 3}, "config_fingerprint": "synthetic"}
    Manifest(**facts, splits=shards).save(folder)  # type: ignore[arg-type]
    return folder
