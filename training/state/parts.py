"""Part files of a checkpoint: safetensors files of one flat fp32 tensor for each kind of state.

    vectors of a rank -> part-00003.safetensors: header | weight | exp_avg | exp_avg_sq -> ranges of any of them

The format is that of https://github.com/huggingface/safetensors. Reading takes ranges of bytes straight into the memory
that wants them: nothing is mapped, so what was read does not pile up in memory.
"""

import contextlib
import itertools
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from common.files import HashingWriter
from common.mistakes import MENDABLE
from training.state.index import Index

MOST_OPEN = 512
"""Part files that a reader keeps open; half of what systems allow a process by default."""
WAITS = (0.2, 1.0, 5.0)
"""Seconds before reading again where a file system answers with something that may pass (ESTALE, EIO, ETIMEDOUT)."""
_MOST_AT_ONCE = 2**26
"""Bytes given to one system call, and the size of the buffer on the way to a GPU."""
_ITEM = torch.float32.itemsize
T = TypeVar("T")


def part_name(part: int) -> str:
    """Name of a part's file."""
    return f"part-{part:05d}.safetensors"


def write_part(path: Path, kinds: Mapping[str, Sequence[torch.Tensor]]) -> str:
    """Writes a part, synced to the disk, and returns its xxh3_128; see `pieces_of` for what it holds."""
    with HashingWriter(path) as file:
        for piece in pieces_of(kinds):
            file.write(piece)
    return file.digest


def pieces_of(kinds: Mapping[str, Sequence[torch.Tensor]]) -> Iterator[bytes | memoryview]:
    """The bytes of a part, one behind another.

    kinds: for each kind of state fp32 vectors on the host, written one after another.
    """
    yield _header({kind: sum(vector.numel() for vector in vectors) for kind, vectors in kinds.items()})
    for vector in (vector for vectors in kinds.values() for vector in vectors):
        assert vector.dtype == torch.float32, f"{vector.dtype} in a part of fp32"
        if vector.numel():
            yield _bytes(vector.contiguous())


def part_bytes(index: Index, part: int) -> int:
    """Bytes of a part's file, by the index."""
    sizes = {kind: index.size(part, kind) for kind in index.kinds}
    return len(_header(sizes)) + sum(sizes.values()) * _ITEM


def _header(sizes: Mapping[str, int]) -> bytes:
    header, end = {}, 0
    for kind, size in sizes.items():
        begin, end = end, end + size * _ITEM
        header[kind] = {"dtype": "F32", "shape": [size], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def patiently(action: Callable[[], T]) -> T:
    """Does `action`, again after a while where the file system answers with an OSError that may pass."""
    for wait in WAITS:
        try:
            return action()
        except OSError as error:
            if error.errno in MENDABLE:
                raise
            time.sleep(wait)
    return action()


class Parts:
    """The parts of one checkpoint, open for reading; a context manager.

    They stay those of the folder that was opened, whatever is renamed meanwhile.
    """

    def __init__(self, folder: Path, index: Index):
        self.folder, self.index = folder, index
        self._folder = patiently(lambda: os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        self._open: OrderedDict[int, int] = OrderedDict()
        self._places: dict[int, dict[str, tuple[int, int]]] = {}

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *_) -> None:
        for descriptor in (*self._open.values(), self._folder):
            os.close(descriptor)

    def read(self, part: int, kind: str, offset: int, into: torch.Tensor) -> None:
        """Fills a flat fp32 tensor, on any device, with consecutive elements of a kind of state of a part."""
        with self._naming(part):
            patiently(lambda: self._read(part, kind, offset, into))

    def _read(self, part: int, kind: str, offset: int, into: torch.Tensor) -> None:
        begin, size = self._place(part, kind)
        assert offset + into.numel() <= size, f"{offset} + {into.numel()} elements of {size}"
        at = begin + offset * _ITEM
        file = self._file(part)
        if into.device.type == "cpu" and into.dtype == torch.float32 and into.is_contiguous():
            _fill(file, at, _bytes(into))
            return
        for first in range(0, into.numel(), _MOST_AT_ONCE // _ITEM):
            target = into[first : first + _MOST_AT_ONCE // _ITEM]
            values = torch.empty(target.numel())
            _fill(file, at + first * _ITEM, _bytes(values))
            target.copy_(values)

    def _place(self, part: int, kind: str) -> tuple[int, int]:
        """First byte of a kind of state in a part's file, and its elements; worked out when a part is first read."""
        if part not in self._places:
            sizes = {each: self.index.size(part, each) for each in self.index.kinds}
            begins = itertools.accumulate((size * _ITEM for size in sizes.values()), initial=len(_header(sizes)))
            self._places[part] = dict(zip(sizes, zip(begins, sizes.values(), strict=False), strict=True))
        return self._places[part][kind]

    def _file(self, part: int) -> int:
        if part in self._open:
            self._open.move_to_end(part)
        else:
            if len(self._open) >= MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
            self._open[part] = os.open(part_name(part), os.O_RDONLY | os.O_NONBLOCK, dir_fd=self._folder)
        return self._open[part]

    @contextlib.contextmanager
    def _naming(self, part: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder / part_name(part))) from error


def _fill(file: int, at: int, into: memoryview) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done : done + _MOST_AT_ONCE]], at + done)
        if not count:
            raise RuntimeError("a part of a checkpoint ends before its last element")
        done += count


def _bytes(vector: torch.Tensor) -> memoryview:
    """The bytes of a contiguous vector on the host, shared with it."""
    return vector.detach().reshape(-1).view(torch.uint8).numpy().data
