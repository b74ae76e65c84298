"""Tokenized documents on disk, in the format of Megatron's IndexedDataset (version 1).

    ShardWriter: documents -> <prefix>.bin   all tokens, one document after the other
                              <prefix>.idx   lengths, byte offsets and document numbers
                              <prefix>.sums  xxh3_64 of every 64 KiB block of the two, and how many documents start
                                             before each block of .bin (ours; others ignore it)

    ShardReader: maps the files, reads none of them to open, and checks each block the first time it is touched.

One Megatron sequence is one document. A shard that another program wrote has no .sums; `write_sums` reads it once,
checks that its index is sound and adds them. Until then it is refused unless `checked=False` asks for it as it is.
"""

import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from common.files import naming, open_file, sync_folder, temporary_name, written_aside
from common.mistakes import Mistake

BLOCK = 1 << 16
"""Bytes covered by one checksum."""
SUFFIXES = (".bin", ".idx", ".sums")
"""Files of a shard, in the order they are put in place."""
ADVICE = "the shard is damaged: delete its dataset and run 'shardline data build CONFIG' again"

_ADVICE_ON = {
    ".bin": ADVICE,
    ".idx": ADVICE,
    ".sums": "copy it from where the shard was built, or build the dataset again with 'shardline data build CONFIG'",
}
_MAGIC = b"MMIDIDX\x00\x00"
_IDX_HEADER = struct.Struct("<9sQBQQ")
_SUMS_MAGIC = b"SHRDSUMS"
_SUMS_HEADER = struct.Struct("<8sQQQ")
_DTYPES: dict[int, np.dtype] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest dtype Megatron would choose for this vocabulary: uint16 below 65,500 ids, else int32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


def with_suffix(prefix: Path, suffix: str) -> Path:
    """File of a shard; unlike `Path.with_suffix` it keeps dots of the prefix."""
    return prefix.with_name(prefix.name + suffix)


def shard_sizes(num_documents: int, num_tokens: int, dtype: np.dtype) -> dict[str, int]:
    """Bytes of each file of a shard with that much in it, by suffix."""
    num_bin = num_tokens * dtype.itemsize
    num_idx = _IDX_HEADER.size + 12 * num_documents + 8 * (num_documents + 1)
    num_sums = _SUMS_HEADER.size + 8 * (2 * _num_blocks(num_bin) + 2 + _num_blocks(num_idx)) + 8
    return {".bin": num_bin, ".idx": num_idx, ".sums": num_sums}


def _num_blocks(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK)


class _SummedFile:
    """A file being written aside, with the checksums of its blocks and of all of it."""

    def __init__(self, path: Path):
        self.path = path
        self.temporary = temporary_name(path)
        self.size = 0
        self.sums: list[int] = []
        self._block = xxhash.xxh3_64()
        self._whole = xxhash.xxh3_128()
        self._file = self.temporary.open("wb")

    def write(self, data) -> None:
        """Appends a contiguous buffer."""
        view = memoryview(data).cast("B")
        with naming(self.path):
            self._file.write(view)
        self._whole.update(view)
        done = 0
        while done < len(view):
            part = view[done : done + BLOCK - self.size % BLOCK]
            self._block.update(part)
            done += len(part)
            self.size += len(part)
            if self.size % BLOCK == 0:
                self._end_block()

    def _end_block(self) -> None:
        self.sums.append(self._block.intdigest())
        self._block.reset()

    def finish(self) -> str:
        """Brings the file to the disk under its temporary name; returns the hex digest of all of it."""
        if self.size % BLOCK:
            self._end_block()
        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return self._whole.hexdigest()

    def commit(self) -> None:
        """Gives the finished file its name."""
        self.temporary.replace(self.path)

    def discard(self) -> None:
        """Leaves nothing of the file behind."""
        self._file.close()
        self.temporary.unlink(missing_ok=True)


class ShardWriter:
    """Writes one shard; its files get their names together when the `with` block ends without an error.

    Memory stays at 12 bytes per document however long the documents are.
    """

    def __init__(self, prefix: Path, vocab_size: int):
        self.prefix = Path(prefix)
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.num_documents = 0
        self.num_tokens = 0
        self.checksums: dict[str, str] = {}
        self._lengths: list[np.ndarray] = []
        self._files: list[_SummedFile] = []

    def __enter__(self) -> "ShardWriter":
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin = self._create(".bin")
        return self

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Appends documents: their tokens one after the other, integers [sum of lengths], and lengths [N], all >= 1.

        Raises ValueError when the lengths do not make up the tokens or an id is outside the vocabulary.
        """
        tokens, lengths = np.asarray(tokens), np.asarray(lengths, dtype=np.int64)
        if len(lengths) and not 1 <= lengths.min() <= lengths.max() < 2**31:
            raise Mistake(f"{self.prefix}: a document has {lengths.min()} to {lengths.max()} tokens; 1 to 2^31-1 fit")
        if lengths.sum() != len(tokens):
            raise Mistake(f"{self.prefix}: lengths add up to {lengths.sum()}, but there are {len(tokens)} tokens")
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            found = tokens.min() if tokens.min() < 0 else tokens.max()
            raise Mistake(f"{self.prefix}: token id {found} is not in a vocabulary of {self.vocab_size}")
        self._bin.write(np.ascontiguousarray(tokens, dtype=self.dtype))
        self._lengths.append(lengths.astype("<i4"))
        self.num_documents += len(lengths)
        self.num_tokens += len(tokens)

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            for file in self._files:
                file.discard()

    def _create(self, suffix: str) -> _SummedFile:
        self._files.append(_SummedFile(with_suffix(self.prefix, suffix)))
        return self._files[-1]

    def _commit(self) -> None:
        index = self._create(".idx")
        pointers = self._write_index(index)
        digests = [self._bin.finish(), index.finish()]
        sums = self._create(".sums")
        sums.write(_sums_bytes(self._bin.sums + index.sums, self._bin.size, index.size, pointers))
        digests.append(sums.finish())
        for file in self._files:
            file.commit()
        sync_folder(self.prefix.parent)
        self.checksums = {file.path.name: digest for file, digest in zip(self._files, digests, strict=True)}

    def _write_index(self, index: _SummedFile) -> np.ndarray:
        """Writes .idx; returns the byte offset of each document, int64."""
        lengths = np.concatenate([np.zeros(0, "<i4"), *self._lengths])
        self._lengths.clear()
        pointers = (np.cumsum(lengths, dtype="<i8") - lengths) * self.dtype.itemsize
        index.write(_IDX_HEADER.pack(_MAGIC, 1, _CODES[self.dtype], len(lengths), len(lengths) + 1))
        index.write(lengths)
        index.write(pointers)
        index.write(np.arange(len(lengths) + 1, dtype="<i8"))
        return pointers


def _sums_bytes(sums: list[int], bin_size: int, idx_size: int, pointers: np.ndarray) -> bytes:
    """Content of a .sums file: header, one sum per block, documents before each block, and the sum of all that."""
    body = _SUMS_HEADER.pack(_SUMS_MAGIC, BLOCK, bin_size, idx_size) + np.array(sums, dtype="<u8").tobytes()
    body += _documents_before(pointers, bin_size).astype("<i8").tobytes()
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def _documents_before(pointers: np.ndarray, bin_size: int) -> np.ndarray:
    """How many documents start before each block of .bin, its end and one block on: where a search can begin."""
    return np.searchsorted(pointers, np.arange(_num_blocks(bin_size) + 2, dtype=np.int64) * BLOCK)


class _Sums(NamedTuple):
    """A parsed .sums file: views of the mapped file, so that a shard takes no memory for them."""

    bin_sums: np.ndarray
    """Checksum of each block of .bin, uint64."""
    idx_sums: np.ndarray
    """Checksum of each block of .idx, uint64."""
    sizes: tuple[int, int]
    """Bytes of .bin and .idx."""
    documents_before: np.ndarray
    """Documents that start before each block of .bin, its end and one block on, int64."""


class _CheckedFile:
    """A mapped file whose 64 KiB blocks are compared with their checksums when first touched."""

    def __init__(self, path: Path):
        self.path = path
        with open_file(path) as file:
            self.size = os.fstat(file.fileno()).st_size
            # an empty file cannot be mapped
            self.bytes = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if self.size else b"")
        self._sums: np.ndarray | None = None
        self._verified = bytearray()

    def expect(self, sums: np.ndarray) -> None:
        """Sets the checksums of the blocks, uint64; none has been checked yet."""
        self._sums = sums
        self._verified = bytearray(len(sums))

    def check(self, start: int, stop: int) -> None:
        """Raises ValueError if a block of bytes [start, stop) is not as it was written."""
        if self._sums is None or start >= stop:
            return
        end = (stop - 1) // BLOCK + 1
        block = self._verified.find(0, start // BLOCK, end)
        while block >= 0:
            offset = block * BLOCK
            if xxhash.xxh3_64_intdigest(self.bytes[offset : offset + BLOCK]) != self._sums[block]:
                until = min(offset + BLOCK, self.size)
                raise Mistake(f"{self.path}: checksum mismatch in bytes {offset} to {until - 1}; {ADVICE}")
            self._verified[block] = 1
            block = self._verified.find(0, block + 1, end)

    def check_ranges(self, starts: np.ndarray, stops: np.ndarray) -> None:
        """The same for many ranges of bytes at once, int64 [B], all within the file."""
        if self._sums is None:
            return
        known = np.frombuffer(self._verified, bool)
        first, last = starts // BLOCK, (stops - 1) // BLOCK
        unknown = ~(known[first] & known[last]) | (last - first > 1)
        for index in np.flatnonzero(unknown).tolist():
            self.check(int(starts[index]), int(stops[index]))


class Division(NamedTuple):
    """How documents divide B ranges of a shard's tokens."""

    starts: np.ndarray
    """Tokens strictly inside a range at which a document starts, range after range: int64 [sum of counts]."""
    counts: np.ndarray
    """How many there are in each range: int64 [B]."""
    begins: np.ndarray
    """Whether a document starts with the range: bool [B]."""
    ends: np.ndarray
    """Whether a document ends with the range: bool [B]."""


class ShardReader:
    """Reads a shard through the page cache, in time and memory that do not depend on its size.

    `sizes` are the bytes that each file should have, by suffix, and `sums_digest` the xxh3_128 of .sums, both where a
    manifest tells. Raises ValueError naming the file when one is missing, truncated, damaged or of another format.
    """

    def __init__(
        self,
        prefix: Path,
        *,
        checked: bool = True,
        sizes: dict[str, int] | None = None,
        sums_digest: bytes | None = None,
    ):
        self.prefix = Path(prefix)
        self._sizes = sizes or {}
        self._bin, self._idx = (self._map(suffix) for suffix in (".bin", ".idx"))
        self._documents_before: np.ndarray | None = None
        if checked:
            self._expect(self._read_sums(sums_digest))
        self._read_header()
        self._map_arrays()

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as a read-only view in the shard's dtype, checked before it is handed out."""
        assert 0 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        size = self._itemsize
        self._bin.check(start * size, stop * size)
        return self._tokens[start:stop]

    def boundaries(self, start: int, stop: int) -> np.ndarray:
        """Where documents start within [start, stop), int64 token offsets, ascending."""
        first, last = self._find(np.array([start, stop]))[0].tolist()
        self._check_documents(np.array([first]), np.array([last]))
        return self._pointers[first:last] // self._itemsize

    def divide(self, starts: np.ndarray, stops: np.ndarray) -> Division:
        """How documents divide the ranges of tokens [starts, stops), int64 [B], none of them empty."""
        documents, borders = self._find(np.concatenate([starts, stops]))
        begins, ends = borders.reshape(2, -1)
        first, last = documents.reshape(2, -1)
        self._check_documents(first, last)
        first = first + begins
        counts = last - first
        before = np.cumsum(counts) - counts
        chosen = np.repeat(first - before, counts) + np.arange(counts.sum())
        return Division(self._pointers[chosen] // self._itemsize, counts, begins, ends)

    def check_all(self) -> None:
        """Reads and checks both files to the end; raises ValueError naming the first damaged block."""
        for file in (self._bin, self._idx):
            file.check(0, file.size)

    def _find(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the first document that starts at or after each token, and whether it starts right there.

        The end of the shard counts as the start of one more. The search reads blocks that may not have been
        checked; its results are then proved on checked ones.
        """
        count, at = self.num_documents, tokens * self._itemsize
        block = at // BLOCK
        assert self._documents_before is not None
        found = self._search(at, self._documents_before[block], self._documents_before[block + 1])
        left, right = np.maximum(found - 1, 0), np.minimum(found + 1, count)
        if count:
            self._idx.check_ranges(self._base + 8 * left, self._base + 8 * right)
        before = np.where(found > 0, self._pointers[left] if count else 0, -1)
        after = np.where(found < count, self._pointers[right - 1] if count else 0, self._bin.size)
        proved = (before < at) & (at <= after)
        if not proved.all():
            self._idx.check(0, self._idx.size)
            token = tokens[np.argmin(proved)]
            raise Mistake(f"{self._idx.path}: documents are not in order around token {token}; {ADVICE}")
        return found, after == at

    def _check_documents(self, first: np.ndarray, last: np.ndarray) -> None:
        """Checks where documents [first, last) start, int64 [B], before that is handed out."""
        filled = last > first
        self._idx.check_ranges(self._base + 8 * first[filled], self._base + 8 * last[filled])

    def _search(self, at: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Number of the first document, between `low` and `high`, that starts at or after each byte offset."""
        while (searching := low < high).any():
            middle = (low + high) // 2
            below = searching & (self._pointers[np.minimum(middle, self.num_documents - 1)] < at)
            low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        return low

    def _map(self, suffix: str) -> _CheckedFile:
        path = with_suffix(self.prefix, suffix)
        try:
            file = _CheckedFile(path)
        except FileNotFoundError:
            reason = "no such file, so the shard cannot be checked" if suffix == ".sums" else "no such file"
            raise Mistake(f"{path}: {reason}; {_ADVICE_ON[suffix]}") from None
        if self._sizes.get(suffix, file.size) != file.size:
            raise Mistake(f"{path}: {file.size} bytes where {self._sizes[suffix]} were written; {ADVICE}")
        return file

    def _read_sums(self, digest: bytes | None) -> _Sums:
        file = self._map(".sums")
        return _parse_sums(file.path, file.bytes, digest)

    def _expect(self, sums: _Sums) -> None:
        for file, size in zip((self._bin, self._idx), sums.sizes, strict=True):
            if file.size != size:
                raise Mistake(f"{file.path}: {file.size} bytes where {size} were written; {ADVICE}")
        self._bin.expect(sums.bin_sums)
        self._idx.expect(sums.idx_sums)
        self._documents_before = sums.documents_before

    def _read_header(self) -> None:
        self._idx.check(0, min(self._idx.size, _IDX_HEADER.size))
        path = self._idx.path
        if self._idx.size < _IDX_HEADER.size:
            raise Mistake(f"{path}: {self._idx.size} bytes are no Megatron index; {ADVICE}")
        magic, version, code, num_sequences, num_documents = _IDX_HEADER.unpack_from(self._idx.bytes)
        if magic != _MAGIC or version != 1:
            raise Mistake(f"{path}: not a Megatron index of version 1; {ADVICE}")
        if code not in _DTYPES:
            raise Mistake(f"{path}: token dtype code {code}; 8 (uint16) and 4 (int32) can be read")
        if num_documents != num_sequences + 1:
            raise Mistake(
                f"{path}: {num_sequences} sequences in {num_documents - 1} documents; one sequence per document is read"
            )
        self.dtype = _DTYPES[code]
        self.num_documents = num_sequences
        self._itemsize = self.dtype.itemsize
        self.num_tokens = self._bin.size // self._itemsize

    def _map_arrays(self) -> None:
        expected = shard_sizes(self.num_documents, self.num_tokens, self.dtype)
        for file, suffix in ((self._bin, ".bin"), (self._idx, ".idx")):
            if file.size != expected[suffix]:
                raise Mistake(f"{file.path}: {file.size} bytes where {expected[suffix]} belong; {ADVICE}")
        self._tokens = np.frombuffer(self._bin.bytes, self.dtype)
        self._base = _IDX_HEADER.size + 4 * self.num_documents
        pointers = self._idx.bytes[self._base : self._base + 8 * self.num_documents]
        self._pointers = np.frombuffer(pointers, np.dtype("<i8"))
        if self._documents_before is None:
            self._documents_before = _documents_before(self._pointers, self._bin.size)


def _parse_sums(path: Path, body: memoryview, digest: bytes | None) -> _Sums:
    """Content of a .sums file, proved by its own checksum and the one its manifest tells."""
    if digest is not None and xxhash.xxh3_128_digest(body) != digest:
        raise Mistake(f"{path}: not the file its manifest describes; {ADVICE}")
    whole = len(body) >= _SUMS_HEADER.size + 8 and len(body) % 8 == 0
    if not whole or xxhash.xxh3_64_intdigest(body[:-8]) != struct.unpack("<Q", body[-8:])[0]:
        raise Mistake(f"{path}: checksum mismatch in bytes 0 to {len(body) - 1}; {ADVICE}")
    magic, block, bin_size, idx_size = _SUMS_HEADER.unpack_from(body)
    num_bin, num_idx = _num_blocks(bin_size), _num_blocks(idx_size)
    numbers = np.frombuffer(body, np.dtype("<u8"), offset=_SUMS_HEADER.size)[:-1]
    if magic != _SUMS_MAGIC or block != BLOCK or len(numbers) != 2 * num_bin + 2 + num_idx:
        raise Mistake(f"{path}: not checksums of {BLOCK}-byte blocks; {ADVICE}")
    bin_sums, idx_sums, documents_before = np.split(numbers, [num_bin, num_bin + num_idx])
    return _Sums(bin_sums, idx_sums, (bin_size, idx_size), documents_before.view(np.int64))


def write_sums(prefix: Path) -> None:
    """Reads a shard of another program once, proves its index sound and writes its .sums.

    Raises ValueError when the documents are not laid one after the other over the whole .bin.
    """
    prefix = Path(prefix)
    reader = ShardReader(prefix, checked=False)
    lengths = np.frombuffer(reader._idx.bytes, np.dtype("<i4"), reader.num_documents, _IDX_HEADER.size)
    ends = np.cumsum(lengths, dtype=np.int64) * reader._itemsize
    sound = np.array_equal(reader._pointers[1:], ends[:-1]) and (lengths > 0).all()
    if not sound or (ends[-1] if len(ends) else 0) != reader._bin.size or (len(ends) and reader._pointers[0]):
        raise Mistake(f"{reader._idx.path}: its documents do not lie one after the other over {prefix.name}.bin")
    files = (reader._bin.bytes, reader._idx.bytes)
    sums = [xxhash.xxh3_64_intdigest(data[at : at + BLOCK]) for data in files for at in range(0, len(data), BLOCK)]
    with written_aside(with_suffix(prefix, ".sums")) as file:
        file.write(_sums_bytes(sums, reader._bin.size, reader._idx.size, reader._pointers))
