"""Small synthetic datasets, written straight into shards."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.manifest import Manifest, ShardInfo, SourceCounts
from data_pipeline.shards import ShardWriter
from tests.data_pipeline import samples

Splits = dict[str, list[Sequence[Sequence[int]]]]


def _write_shard(
    folder: Path, name: str, documents: Sequence[Sequence[int]], vocab_size: int, source: int = 0
) -> ShardInfo:
    with ShardWriter(folder / name, vocab_size) as writer:
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        tokens = np.concatenate([np.zeros(0, np.int64), *(np.asarray(document) for document in documents)])
        writer.add(tokens, lengths)
    return ShardInfo(
        name=name,
        num_documents=writer.num_documents,
        num_tokens=writer.num_tokens,
        checksums=writer.checksums,
        source_bytes=3 * writer.num_tokens,
        source=source,
    )


def _write_dataset(
    folder: Path, splits: Splits, vocab_size: int = 1000, sources: dict[str, list[str]] | None = None
) -> Path:
    """`sources` names the source of each shard of a split."""
    names = list(dict.fromkeys(name for of_split in (sources or {}).values() for name in of_split))
    numbers = {split: [names.index(name) for name in of_split] for split, of_split in (sources or {}).items()}
    shards = {
        split: [
            _write_shard(folder, f"{split}-{n:05d}", shard, vocab_size, numbers[split][n] if sources else 0)
            for n, shard in enumerate(documents)
        ]
        for split, documents in splits.items()
    }
    Manifest(
        tokenizer_fingerprint="synthetic",
        vocab_size=vocab_size,
        dtype="uint16" if vocab_size < 65500 else "int32",
        bos_id=1,
        eos_id=2,
        config_fingerprint="synthetic",
        splits=shards,
        sources=[SourceCounts(name=name) for name in names],
        counts={"documents_read": sum(len(shard) for split in splits.values() for shard in split)},
    ).save(folder)
    return folder


def _documents(lengths: Sequence[int], first_id: int = 1, vocab_size: int = 1000) -> list[np.ndarray]:
    ids = 1 + (first_id - 1 + np.arange(sum(lengths))) % (vocab_size - 1)
    return np.split(ids, np.cumsum(lengths)[:-1])


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    """Function (folder, {split: [documents of each shard]}, vocab_size, {split: [source of each shard]}) that writes a
    dataset; returns its folder."""
    return _write_dataset


@pytest.fixture(scope="session")
def numbered_documents() -> Callable[..., list[np.ndarray]]:
    """Function (lengths) -> documents whose tokens count on from 1 through all of them: every place is its own id."""
    return _documents


@pytest.fixture(scope="session")
def varied_dataset(tmp_path_factory) -> Path:
    """300 training documents of 1 to 60 tokens in three shards, 40 for validation, in a vocabulary of 60,000."""
    lengths = np.random.default_rng(7).integers(1, 61, 340).tolist()
    documents = _documents(lengths, vocab_size=60_000)
    splits = {
        "train": [documents[:50], documents[50:51], documents[51:300]],
        "validation": [documents[300:]],
    }
    return _write_dataset(tmp_path_factory.mktemp("varied"), splits, vocab_size=60_000)


@pytest.fixture(scope="session")
def text_dataset(tmp_path_factory) -> Path:
    """A dataset of 400 documents of 0 to 150 tokens between bos and eos, for every objective, 40 for validation."""
    lengths = (np.random.default_rng(5).pareto(1.2, 440) * 12).astype(int).clip(0, 150)
    documents = [samples.piece(length, True, True, 17 * number) for number, length in enumerate(lengths)]
    splits = {"train": [documents[:150], documents[150:400]], "validation": [documents[400:]]}
    folder = _write_dataset(tmp_path_factory.mktemp("text"), splits, vocab_size=samples.SIZE)
    vocabulary = samples.VOCABULARY
    Manifest.load(folder).model_copy(
        update={
            "special_ids": vocabulary.special,
            "first_sentinel_id": vocabulary.first_sentinel,
            "num_sentinels": vocabulary.num_sentinels,
            "word_starts": vocabulary.word_starts,
            "word_ends": vocabulary.word_ends,
        }
    ).save(folder)
    return folder
