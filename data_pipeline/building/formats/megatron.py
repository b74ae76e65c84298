"""Token ids in Megatron-LM's `.bin` and `.idx`, written by others: cut by documents, copied without tokenizing.

    .idx   34 bytes of head | length of each sequence | where it begins in .bin | first sequence of each document
    .bin   the ids

    documents -> without <s> and </s> at their ends, if they have them -> between <s> and </s>

Nothing in these files says which tokenizer they are of, so ids that its vocabulary lacks end the build. Documents are
known by the hash of their ids, as 32-bit integers between the borders: the same ones are found equal whatever their
type and whether they have <s> or </s>.
"""

import dataclasses
import itertools
import struct
from collections.abc import Iterator
from typing import IO

import numpy as np
import xxhash

from common.mistakes import Mistake
from data_pipeline.building.records import MAX_DOCUMENT_BYTES, Rejects, Unit
from data_pipeline.building.remote_files import open_file

HEAD = struct.Struct("<9sQBQQ")
MAGIC = b"MMIDIDX\x00\x00"
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Types of ids by the codes of Megatron's DType; the others are fractions."""
TEXT_BYTES_PER_TOKEN = 4
"""Guess; it only balances the sizes of tasks."""
BATCH_TOKENS = 1 << 21
BATCH_DOCUMENTS = 1 << 14


@dataclasses.dataclass(frozen=True)
class KnownIds:
    """What the tokenizer says of ids."""

    bos_id: int
    """Id of <s>."""
    eos_id: int
    """Id of </s>."""
    text_bytes: np.ndarray
    """UTF-8 bytes that each id stands for, int64 [V]; there are no ids beyond."""


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """N documents that are tokens already."""

    tokens: np.ndarray
    """Their ids between <s> and </s>, one document after the other, int32 [sum of lengths]."""
    lengths: np.ndarray
    """Tokens of each, int64 [N]."""
    sizes: np.ndarray
    """UTF-8 bytes of the text of each, int64 [N]."""
    keys: np.ndarray
    """Hash of each, uint64 [2, N]: high and low half."""

    def only(self, chosen: np.ndarray) -> "TokenBatch":
        """Those that are chosen, bool [N]."""
        tokens = self.tokens[np.repeat(chosen, self.lengths)]
        return TokenBatch(tokens, self.lengths[chosen], self.sizes[chosen], self.keys[:, chosen])


class _Index:
    """The `.idx` of a file, of which only what is asked for is read."""

    def __init__(self, file: IO[bytes], url: str):
        self._file, self.url = file, url
        file.seek(0)
        head = file.read(HEAD.size)
        if len(head) < HEAD.size or not head.startswith(MAGIC):
            raise Mistake(f"{url}: is no index of Megatron-LM (MMIDIDX); correct path or format of its source")
        _, version, code, self.num_sequences, num_borders = HEAD.unpack(head)
        if version != 1 or code not in TYPES or not num_borders:
            raise Mistake(
                f"{url}: version {version} with ids of type {code} and {num_borders} borders of documents cannot be "
                f"read; version 1 with integers can (types {', '.join(map(str, TYPES))})"
            )
        self.dtype = np.dtype(TYPES[code])
        self.num_documents = num_borders - 1
        size, expected = file.seek(0, 2), HEAD.size + 12 * self.num_sequences + 8 * num_borders
        if size != expected:
            what = "holds more than tokens (modes of a multimodal dataset?)" if size > expected else "breaks off"
            raise Mistake(f"{url}: {size} bytes where {expected} belong: it {what}; convert or fetch it again")

    def documents(self, start: int, stop: int) -> np.ndarray:
        """Bytes of `.bin` at which documents start ... stop begin, int64 [stop - start + 1]."""
        firsts = self._array("<i8", HEAD.size + 12 * self.num_sequences + 8 * start, stop + 1 - start)
        whole = (start or not firsts[0]) and (stop < self.num_documents or firsts[-1] == self.num_sequences)
        if not whole or (np.diff(firsts) < 0).any() or not 0 <= firsts[0] <= firsts[-1] <= self.num_sequences:
            raise Mistake(f"{self.url}: its documents do not divide its {self.num_sequences} sequences; write it again")
        return self._sequences(int(firsts[0]), int(firsts[-1]))[firsts - firsts[0]]

    def _sequences(self, start: int, stop: int) -> np.ndarray:
        """The same of sequences, which have to lie end to end."""
        lengths = self._array("<i4", HEAD.size + 4 * start, stop - start).astype(np.int64)
        begins = self._array("<i8", HEAD.size + 4 * self.num_sequences + 8 * start, stop - start)
        ends = begins + lengths * self.dtype.itemsize
        if (lengths < 0).any() or not np.array_equal(ends[:-1], begins[1:]) or (start == 0 and begins[:1].any()):
            raise Mistake(f"{self.url}: its sequences do not lie one after the other in .bin; write it again")
        return np.concatenate([begins, ends[-1:]]) if stop > start else np.zeros(1, np.int64)

    def _array(self, dtype: str, offset: int, count: int) -> np.ndarray:
        self._file.seek(offset)
        return np.frombuffer(self._file.read(np.dtype(dtype).itemsize * count), dtype)


def bin_of(url: str) -> str:
    """Where the ids of an index lie."""
    return url.removesuffix(".idx") + ".bin"


def plan_megatron(file: IO[bytes], whole: Unit, text_key: str, unit_bytes: int) -> list[Unit]:
    """Equal numbers of documents with about unit_bytes of text."""
    num_documents = _Index(file, whole.url).num_documents
    num_parts = max(min(-(-whole.weight // unit_bytes), num_documents), 1)
    borders = [num_documents * part // num_parts for part in range(num_parts + 1)]
    return [
        dataclasses.replace(whole, weight=whole.weight // num_parts, start=start, stop=stop)
        for start, stop in itertools.pairwise(borders)
    ]


def read_megatron(unit: Unit, known: KnownIds, rejects: Rejects) -> Iterator[TokenBatch]:
    """Documents of a unit in batches, memory bounded by a batch and the longest of them.

    Raises ValueError when the files do not hold together or an id is not in the vocabulary.
    """
    rejects.unit = unit
    with open_file(unit.url, scattered=True) as index_file, open_file(bin_of(unit.url)) as bin_file:
        index = _Index(index_file, unit.url)
        size = bin_file.seek(0, 2)
        stop = index.num_documents if unit.stop is None else unit.stop
        for first in range(unit.start, stop, BATCH_DOCUMENTS):
            last = min(first + BATCH_DOCUMENTS, stop)
            offsets = index.documents(first, last)
            ends_early = last == index.num_documents and offsets[-1] and offsets[-1] != size
            if ends_early or offsets[-1] > size:
                raise Mistake(f"{bin_of(unit.url)}: {size} bytes where {unit.url} tells of others; copy both again")
            for part in _batches(offsets, index.dtype.itemsize):
                number = first - unit.start + part.start + 1
                lengths = np.diff(offsets[part.start : part.stop + 1]) // index.dtype.itemsize
                if TEXT_BYTES_PER_TOKEN * lengths.max() > MAX_DOCUMENT_BYTES:
                    rejects.add("too_large", number)
                    continue
                bin_file.seek(int(offsets[part.start]))
                tokens = np.frombuffer(bin_file.read(int(offsets[part.stop] - offsets[part.start])), index.dtype)
                yield _bordered(tokens, lengths, number, known, rejects)


def _batches(offsets: np.ndarray, itemsize: int) -> Iterator[range]:
    """Neighbouring documents with at most BATCH_TOKENS in them, or one that has more."""
    start = 0
    while start < len(offsets) - 1:
        limit = offsets[start] + BATCH_TOKENS * itemsize
        stop = max(int(np.searchsorted(offsets, limit, "right")) - 1, start + 1)
        yield range(start, stop)
        start = stop


def _bordered(tokens: np.ndarray, lengths: np.ndarray, first: int, known: KnownIds, rejects: Rejects) -> TokenBatch:
    """Documents between their borders; those with nothing in between are counted and left out."""
    assert rejects.unit is not None
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < len(known.text_bytes):
        wrong = int(tokens.min()) if tokens.min() < 0 else int(tokens.max())
        raise Mistake(
            f"{rejects.unit.url}: holds the id {wrong}, and the tokenizer's are 0 to {len(known.text_bytes) - 1}; "
            "set tokenizer.path to the tokenizer that it was written with"
        )
    kept: list[np.ndarray] = []
    digests = bytearray()
    for number, document in enumerate(np.split(tokens, np.cumsum(lengths)[:-1]), start=first):
        content = _content(document, known)
        if not len(content):
            rejects.add("empty", number)
        else:
            digests += xxhash.xxh3_128_digest(content.tobytes())
            kept += [np.array([known.bos_id], np.int32), content, np.array([known.eos_id], np.int32)]
    keys = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 2).T.astype(np.uint64)
    ids = np.concatenate([np.zeros(0, np.int32), *kept])
    kept_lengths = np.array([len(content) + 2 for content in kept[1::3]], np.int64)
    before = np.cumsum(kept_lengths) - kept_lengths
    sizes = np.add.reduceat(known.text_bytes[ids], before) if len(ids) else kept_lengths
    return TokenBatch(ids, kept_lengths, sizes, keys)


def _content(document: np.ndarray, known: KnownIds) -> np.ndarray:
    """A document without the borders it has, int32 [T]."""
    start = int(len(document) > 0 and document[0] == known.bos_id)
    stop = len(document) - int(len(document) > start and document[-1] == known.eos_id)
    return document[start:stop].astype("<i4")
