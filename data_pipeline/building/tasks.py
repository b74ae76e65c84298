"""The work of a build that is done task by task, in any process and in any order, with the same result.

    hash_task       units -> hashes of the documents of one task, to find copies of earlier ones by (copies.py)
    line_task       units - copies -> hashes of their long lines, for the same (lines.py)
    tokenize_task   units - copies -> 00000.done, and the shards train-00000.{bin,idx,sums}, validation-00000.*

The tasks that find near copies are in near/tasks.py; `passes` puts all in order. All but the shards lie in the folder
`.shardline-build`, which is gone when the dataset is whole. Every file is written aside and renamed. A task that finds
its result whole hands it back, which is all there is to resuming. Nothing here knows of Ray.
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
from data_pipeline.building.formats.megatron import KnownIds, TokenBatch, read_megatron
from data_pipeline.building.gone import Gone
from data_pipeline.building.lines import LINE_PREFIX, RepeatedLines, line_keys
from data_pipeline.building.near.near_copies import NearCopies
from data_pipeline.building.sources import MAX_EXAMPLES, Record, Rejects, Unit, holds_tokens, read_documents
from data_pipeline.building.tables import Cut
from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.filters.chain import Step, make_steps
from data_pipeline.filters.settings import FilterList
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
    first_task: int = 0
    """Number of the first task; those before it made the dataset that this build adds to."""
    known_keys: tuple[str, ...] = ()
    """Files in the folder with the keys of that dataset."""
    copies: Copies | None = None
    """Where copies of documents are looked for, and found once its passes are done."""
    near: NearCopies | None = None
    """The same for near copies."""
    lines: Copies | None = None
    """The same for lines."""

    @property
    def folder(self) -> Path:
        """Where the shards go."""
        return Path(self.data.path)

    @property
    def work(self) -> Path:
        """What is only needed until the manifest is written."""
        return self.folder / WORK_NAME

    @property
    def hashes(self) -> Copies:
        """Where the hashes of documents go; how they are cut is seen once all are there."""
        known = tuple(self.folder / name for name in self.known_keys)
        cut = Cut(self.num_tasks, first_task=self.first_task)
        return Copies(self.work, cut, keeps_keys=self.data.deduplicate.can_grow, known=known)

    @property
    def line_hashes(self) -> Copies:
        """The same for lines."""
        return Copies(self.work, Cut(self.num_tasks), LINE_PREFIX)

    @property
    def keys_file(self) -> Path:
        """Digests of the files with the hashes of all documents, range by range."""
        return self.work / "keys.json"

    @property
    def stop_file(self) -> Path:
        """Is there when another task has failed and the rest need not go on."""
        return self.work / "stop"

    def marker(self, index: int) -> Path:
        """Is there when the shards of a task are whole, and says what is in them."""
        return self.work / f"{index:05d}.done"

    @property
    def verdict_file(self) -> Path:
        """Is there when the fast encoder's ids were found to differ on this corpus."""
        return self.work / "encoder-differs.json"


class Stopped(Exception):
    """Another task has failed."""


class EncoderDiffers(Exception):
    """The fast encoder gave other ids than the original library, so nothing that it encoded counts."""


# ---- passes that look for copies


def hash_task(job: Job, index: int, units: Sequence[Unit]) -> dict[str, Any]:
    """Hashes the documents of a task."""
    task = job.first_task + index
    known = job.hashes.num_hashed(task)
    if known is None:
        found = (batch.keys for _, batch in remaining(job, task, units))
        keys = np.concatenate([np.zeros((2, 0), np.uint64), *found], axis=1)
        job.hashes.save_hashes(task, keys)
        known = keys.shape[1]
    return {"documents": known}


def line_task(job: Job, index: int, units: Sequence[Unit]) -> dict[str, Any]:
    """Hashes the long lines of those documents of a task that are left."""
    known = job.line_hashes.num_hashed(index)
    if known is None:
        found = (line_keys(batch.texts) for _, batch in remaining_texts(job, index, units))
        keys = np.concatenate([np.zeros((2, 0), np.uint64), *found], axis=1)
        job.line_hashes.save_hashes(index, keys)
        known = keys.shape[1]
    return {"lines": known}


def find_task(job: Job, index: int, units: Sequence[Unit], copies: Copies) -> dict[str, Any]:
    """Looks which documents, or lines, repeat earlier ones, among those with hashes in one range."""
    copies.find(index)
    return {"keys": file_digest(copies.keys_path(index)) if copies.keeps_keys else None}


# ---- last pass: shards


def tokenize_task(job: Job, index: int, units: Sequence[Unit]) -> dict[str, Any]:
    """Writes the shards of a task and what is in them; returns that (see `_write_shards`).

    Raises EncoderDiffers when the ids of the fast encoder are not the original library's; the whole build is then to
    be encoded by that (`Job.reference_only`), whichever task it was that noticed.
    """
    index += job.first_task
    marker = job.marker(index)
    done = _read_marker(job, marker)
    if done is not None:
        return {**_without_samples(done), "resumed": True}
    fast_encoder = "off" if job.reference_only else job.tokenizer.fast_encoder
    facts = _write_shards(job, index, units, _tokenizer(job.tokenizer, fast_encoder, job.tokenizer_fingerprint))
    facts["fingerprint"] = job.fingerprint
    write_json(marker, facts)
    return {**_without_samples(facts), "resumed": False}


def _without_samples(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of a task for whoever holds those of all tasks; the texts that were dropped stay in its marker."""
    return {name: fact for name, fact in facts.items() if name != "samples"}


def dropped_samples(job: Job, results: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The first texts dropped of each source for each reason, from the markers of as few tasks as have them."""
    found: Counter[tuple[int, str]] = Counter()
    for index, result in enumerate(results, start=job.first_task):
        if all(found[source, reason] >= MAX_EXAMPLES for source, reason, _ in result["rejects"]):
            continue
        for sample in parse_json(read_file(job.marker(index))).get("samples", []):
            found[sample["source"], sample["reason"]] += 1
            if found[sample["source"], sample["reason"]] <= MAX_EXAMPLES:
                yield sample


@functools.lru_cache(maxsize=1)
def _tokenizer(settings: TokenizerConfig, fast_encoder: str, fingerprint: str) -> Tokenizer:
    tokenizer = Tokenizer.load(settings, fast_encoder)
    if tokenizer.fingerprint != fingerprint:
        raise Mistake(f"tokenizer.path: {settings.path} changed while the dataset was being built; build it again")
    return tokenizer


def _write_shards(job: Job, index: int, units: Sequence[Unit], tokenizer: Tokenizer) -> dict[str, Any]:
    """Facts of a task: its source, its shards by split, documents read, rejects by reason, copies, examples.

    Beyond these near copies, and lines that were taken out.
    """
    rejects, read = Rejects(), Counter[int]()
    writers: dict[str, ShardWriter] = {}
    source_bytes: Counter[str] = Counter()
    source = units[0].source
    gone = Gone(index, source, job.copies, job.near)
    lines = RepeatedLines(job.lines.of(index)) if job.lines is not None else None
    with contextlib.ExitStack() as open_writers:
        for every in _batches(job, units, rejects, read):
            _, documents = gone.left(every)
            if lines is not None and isinstance(documents, CleanBatch):
                documents, num_emptied = lines.taken_out(documents, job.data.min_characters)
                if num_emptied:
                    rejects.counts[source, "repeated_lines"] += num_emptied
            held_out = is_validation(documents.keys, job.data.validation_fraction)
            for split, chosen in zip(SPLITS, (~held_out, held_out), strict=True):
                if not chosen.any():
                    continue
                if split not in writers:
                    writer = ShardWriter(job.folder / f"{split}-{index:05d}", tokenizer.vocab_size)
                    writers[split] = open_writers.enter_context(writer)
                writers[split].add(*_tokens(tokenizer, documents.only(chosen)))
                source_bytes[split] += int(documents.sizes[chosen].sum())
    return {
        "source": source,
        "shards": {split: _shard_facts(writer, source_bytes[split]) for split, writer in writers.items()},
        "read": {str(source): count for source, count in read.items()},
        "rejects": [[source, reason, count] for (source, reason), count in sorted(rejects.counts.items())],
        **gone.facts(),
        **(lines.facts() if lines is not None else {}),
        "examples": rejects.examples,
        "samples": rejects.samples,
        "changes": rejects.changes,
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


def _tokens(tokenizer: Tokenizer, batch: CleanBatch | TokenBatch) -> tuple[np.ndarray, np.ndarray]:
    return (batch.tokens, batch.lengths) if isinstance(batch, TokenBatch) else _encode(tokenizer, batch.texts)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    samples = []
    for text in texts[:: -(-len(texts) // SPOT_CHECKS)]:
        start = max(len(text) - SPOT_CHARACTERS, 0) // 2
        samples.append(text[start : start + SPOT_CHARACTERS])
    if not tokenizer.matches_reference(samples):
        raise EncoderDiffers
    return tokenizer.encode_documents(texts)


# ---- all passes


def remaining(job: Job, task: int, units: Sequence[Unit]) -> Iterator[tuple[np.ndarray, CleanBatch | TokenBatch]]:
    """Documents of a task that are not known to be copies by now, and their numbers in it, uint64 [N]."""
    gone = Gone(task, units[0].source, job.copies, job.near)
    for batch in _batches(job, units, Rejects(), Counter()):
        yield gone.left(batch)


def remaining_texts(job: Job, task: int, units: Sequence[Unit]) -> Iterator[tuple[np.ndarray, CleanBatch]]:
    """The same of documents whose text is known."""
    for numbers, batch in remaining(job, task, units):
        if isinstance(batch, CleanBatch):
            yield numbers, batch


def _batches(
    job: Job, units: Sequence[Unit], rejects: Rejects, read: Counter[int]
) -> Iterator[CleanBatch | TokenBatch]:
    """Clean documents of a task; the n-th one is the same in every pass."""
    batches: Iterator[CleanBatch | TokenBatch]
    if holds_tokens(units):
        batches = _token_batches(job, units, rejects, read)
    else:
        steps = _steps(FilterList.dump_json(job.data.filters), job.work)
        batches = clean_batches(_documents(job, units, rejects, read), job.data, rejects, steps)
    for batch in batches:
        if job.stop_file.exists():
            raise Stopped
        yield batch


@functools.lru_cache(maxsize=1)
def _steps(filters: bytes, folder: Path) -> list[Step]:
    """The filters, ready to run: made once in a process."""
    return make_steps(FilterList.validate_json(filters), folder)


def _documents(job: Job, units: Sequence[Unit], rejects: Rejects, read: Counter[int]) -> Iterator[Record]:
    for unit in units:
        for document in read_documents(unit, job.data.sources[unit.source], rejects):
            read[unit.source] += 1
            yield document


def _token_batches(job: Job, units: Sequence[Unit], rejects: Rejects, read: Counter[int]) -> Iterator[TokenBatch]:
    tokenizer = _tokenizer(job.tokenizer, "off", job.tokenizer_fingerprint)
    known = KnownIds(tokenizer.bos_id, tokenizer.eos_id, tokenizer.text_bytes)
    for unit in units:
        for batch in read_megatron(unit, known, rejects):
            read[unit.source] += len(batch.lengths)
            yield batch


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
    whole = all(file_digest(job.folder / name) == digest for name, digest in sums.items())
    return facts if whole else None


def file_digest(path: Path) -> str | None:
    """xxh3_128 of a file, hex; None when it is not there."""
    digest = xxhash.xxh3_128()
    try:
        with open_file(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()
