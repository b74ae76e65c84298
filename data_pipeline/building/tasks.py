"""The work of a build that is done task by task, in any process and in any order, with the same result.

    hash_task       units -> hashes of the documents of one task
    bundle_task, repeat_task, hand_back_task         hashes of all tasks -> copies of earlier documents (copies.py)
    tokenize_task   units - copies -> 00000.done, and the shards train-00000.{bin,idx,sums}, validation-00000.*

All but the shards lie in the folder `.shardline-build`, which is gone when the dataset is whole.
Every file is written aside and renamed. A task that finds its result whole hands it back, which is all there is to
resuming. Nothing here knows of Ray.
"""

import contextlib
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from common.files import open_file, read_file, written_aside
from common.json_lines import parse_json
from common.mistakes import Mistake
from data_pipeline.building.clean import CleanBatch, clean_batches, is_validation
from data_pipeline.building.copies import Copies
from data_pipeline.building.sources import Record, Rejects, Unit, read_documents
from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenizer import FAST_ENCODER, Tokenizer

SPLITS = ("train", "validation")
WORK_NAME = ".shardline-build"
"""Folder inside data.path that only builds write to."""
SPOT_CHECKS = 8
"""Documents of a batch whose ids are compared with the original library's."""
SPOT_CHARACTERS = 2048
"""How much of each of them."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What all tasks of a build share."""

    data: DataConfig
    """The dataset."""
    tokenizer: TokenizerConfig
    """The tokenizer."""
    tokenizer_fingerprint: str
    """Its vocabulary, which must not change on the way."""
    fingerprint: str
    """Hash of the config, the tokenizer and the list of source files."""
    num_tasks: int
    """Tasks in the plan."""
    reference_only: bool = False
    """Whether the original library encodes, because a faster encoder's ids were found to differ."""
    num_ranges: int = 1
    """Ranges of hashes that copies are looked for in."""
    bundle_size: int = 1
    """Tasks whose hashes share a file."""

    @property
    def folder(self) -> Path:
        """Where the shards go."""
        return Path(self.data.path)

    @property
    def work(self) -> Path:
        """What is only needed until the manifest is written."""
        return self.folder / WORK_NAME

    @property
    def copies(self) -> Copies:
        """Where copies of documents are looked for."""
        return Copies(self.work, self.num_tasks, self.num_ranges, self.bundle_size)

    @property
    def stop_file(self) -> Path:
        """Is there when another task has failed and the rest need not go on."""
        return self.work / "stop"

    @property
    def verdict_file(self) -> Path:
        """Is there when the fast encoder's ids were found to differ on this corpus."""
        return self.work / "encoder-differs.json"


class Stopped(Exception):
    """Another task has failed."""


class EncoderDiffers(Exception):
    """The fast encoder gave other ids than the original library, so nothing that it encoded counts."""


# ---- first pass: hashes


def hash_task(job: Job, index: int, units: Sequence[Unit]) -> dict[str, Any]:
    """Hashes the documents of a task."""
    known = job.copies.num_hashed(index)
    if known is None:
        keys = [np.zeros((2, 0), np.uint64), *(batch.keys for batch in _batches(job, units, Rejects(), Counter()))]
        job.copies.save_hashes(index, np.concatenate(keys, axis=1))
        known = sum(part.shape[1] for part in keys)
    return {"documents": known}


def bundle_task(job: Job, index: int, units: Sequence[Unit] = ()) -> dict[str, Any]:
    """Puts the hashes of a bundle of tasks together."""
    job.copies.bundle(index)
    return {}


def repeat_task(job: Job, index: int, units: Sequence[Unit] = ()) -> dict[str, Any]:
    """Looks which documents repeat an earlier one, among those with hashes in one range."""
    job.copies.find(index)
    return {}


def hand_back_task(job: Job, index: int, units: Sequence[Unit] = ()) -> dict[str, Any]:
    """Gathers the repeats of a bundle of tasks."""
    job.copies.hand_back(index)
    return {}


# ---- second pass: shards


def tokenize_task(job: Job, index: int, units: Sequence[Unit]) -> dict[str, Any]:
    """Writes the shards of a task and what is in them; returns that (see `_write_shards`).

    Raises EncoderDiffers when the ids of the fast encoder are not the original library's; the whole build is then to
    be encoded by that (`Job.reference_only`), whichever task it was that noticed.
    """
    marker = job.work / f"{index:05d}.done"
    done = _read_marker(job, marker)
    if done is not None:
        return {**done, "resumed": True}
    fast_encoder = "off" if job.reference_only else job.tokenizer.fast_encoder
    facts = _write_shards(job, index, units, _tokenizer(job.tokenizer, fast_encoder, job.tokenizer_fingerprint))
    facts["fingerprint"] = job.fingerprint
    write_json(marker, facts)
    return {**facts, "resumed": False}


@functools.lru_cache(maxsize=1)
def _tokenizer(settings: TokenizerConfig, fast_encoder: str, fingerprint: str) -> Tokenizer:
    tokenizer = Tokenizer.load(settings, fast_encoder)
    if tokenizer.fingerprint != fingerprint:
        raise Mistake(f"tokenizer.path: {settings.path} changed while the dataset was being built; build it again")
    return tokenizer


def _write_shards(job: Job, index: int, units: Sequence[Unit], tokenizer: Tokenizer) -> dict[str, Any]:
    """Facts of a task: its shards by split, documents read by source, rejects by source and reason, examples."""
    repeats = job.copies.of(index) if job.data.deduplicate == "exact" else np.zeros(0, np.uint64)
    rejects, read = Rejects(), Counter[int]()
    writers: dict[str, ShardWriter] = {}
    source_bytes: Counter[str] = Counter()
    first = 0
    with contextlib.ExitStack() as open_writers:
        for batch in _batches(job, units, rejects, read):
            fresh = ~np.isin(np.arange(first, first + len(batch.texts)), repeats)
            first += len(batch.texts)
            held_out = is_validation(batch.keys, job.data.validation_fraction)
            for split, chosen in zip(SPLITS, (fresh & ~held_out, fresh & held_out), strict=True):
                texts = [batch.texts[number] for number in np.flatnonzero(chosen)]
                if texts and split not in writers:
                    writer = ShardWriter(job.folder / f"{split}-{index:05d}", tokenizer.vocab_size)
                    writers[split] = open_writers.enter_context(writer)
                if texts:
                    writers[split].add(*_encode(tokenizer, texts))
                    source_bytes[split] += int(batch.sizes[chosen].sum())
    return {
        "shards": {split: _shard_facts(writer, source_bytes[split]) for split, writer in writers.items()},
        "read": {str(source): count for source, count in read.items()},
        "rejects": [[source, reason, count] for (source, reason), count in sorted(rejects.counts.items())],
        "repeats": len(repeats),
        "examples": rejects.examples,
        "encoder": tokenizer.encoder,
    }


def _shard_facts(writer: ShardWriter, source_bytes: int) -> dict[str, Any]:
    return {
        "name": writer.prefix.name,
        "num_documents": writer.num_documents,
        "num_tokens": writer.num_tokens,
        "checksums": writer.checksums,
        "source_bytes": source_bytes,
    }


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    samples = []
    for text in texts[:: -(-len(texts) // SPOT_CHECKS)]:
        start = max(len(text) - SPOT_CHARACTERS, 0) // 2
        samples.append(text[start : start + SPOT_CHARACTERS])
    if not tokenizer.matches_reference(samples):
        raise EncoderDiffers
    return tokenizer.encode_documents(texts)


# ---- both passes


def _batches(job: Job, units: Sequence[Unit], rejects: Rejects, read: Counter[int]) -> Iterator[CleanBatch]:
    """Clean documents of a task; the n-th one is the same in every pass."""
    for batch in clean_batches(_documents(job, units, rejects, read), job.data, rejects):
        if job.stop_file.exists():
            raise Stopped
        yield batch


def _documents(job: Job, units: Sequence[Unit], rejects: Rejects, read: Counter[int]) -> Iterator[Record]:
    for unit in units:
        for document in read_documents(unit, job.data.sources[unit.source], rejects):
            read[unit.source] += 1
            yield document


# ---- markers


def write_json(path: Path, facts: Any) -> None:
    """Writes a JSON file so that it is there whole or not at all."""
    with written_aside(path) as file:
        file.write(json.dumps(facts).encode())


def _read_marker(job: Job, path: Path) -> dict[str, Any] | None:
    """Facts of a finished task, if they are of this build and all files are as they were written."""
    try:
        facts = parse_json(read_file(path))
    except (FileNotFoundError, ValueError):
        return None
    try:
        if facts["fingerprint"] != job.fingerprint:
            return None
        if job.reference_only and facts["encoder"] == FAST_ENCODER:
            return None
        sums = {name: digest for shard in facts["shards"].values() for name, digest in shard["checksums"].items()}
    except (KeyError, TypeError, AttributeError):
        return None
    whole = all(_file_digest(job.folder / name) == digest for name, digest in sums.items())
    return facts if whole else None


def _file_digest(path: Path) -> str | None:
    digest = xxhash.xxh3_128()
    try:
        with open_file(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()
