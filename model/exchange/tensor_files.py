"""Safetensors files, one tensor at a time: written into places that were reserved, read into memory of their own.

    sizes of all tensors -> files with headers and holes -> each tensor goes to its place as it comes
    header -> place of a tensor -> the tensor, and nothing else of the file

The safetensors library holds all tensors of a file while it writes it, and maps the whole file to read
one of them; here memory is one tensor's, whatever the size of the model. The format is that of
https://github.com/huggingface/safetensors: 8 bytes of length, a JSON header, the tensors' bytes.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
import xxhash

from common.mistakes import Mistake
from model.exchange.json_objects import parse_object, quoted, read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_BY_NAME = {name: dtype for dtype, name in DTYPES.items()} | {"BOOL": torch.bool, "U8": torch.uint8, "I64": torch.int64}
"""Those of weights, and those of masks and counters that old files hold beside them."""
MOST_HEADER = 100 * 2**20
"""Bytes of the largest header that the safetensors library reads."""
MOST_DIMS = 8
_MOST_AT_ONCE = 2**30
"""Bytes given to one system call: Linux takes no more than 2 GiB."""


class Place(NamedTuple):
    """Where a tensor lies."""

    file: Path
    offset: int
    """Bytes from the beginning of the file."""
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorWriter:
    """Weights of `shapes` by name in `folder`, all of one dtype, in files of at most `file_bytes` where they fit.

    One file is called model.safetensors, several are numbered and have an index, as transformers reads them.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, file_bytes: int):
        groups = list(
            in_groups({name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}, file_bytes)
        )
        self.missing = set(shapes)
        self._places: dict[str, Place] = {}
        index: dict[str, str] = {}
        for number, names in enumerate(groups):
            file = SINGLE if len(groups) == 1 else f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
            self._reserve(folder / file, {name: shapes[name] for name in names}, dtype)
            index |= dict.fromkeys(names, file)
        if len(groups) > 1:
            total = sum(math.prod(shape) * dtype.itemsize for shape in shapes.values())
            facts = {"metadata": {"total_size": total}, "weight_map": index}
            (folder / INDEX).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def _reserve(self, file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        with file.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(start + end)
        for name, shape in shapes.items():
            self._places[name] = Place(file, start + header[name]["data_offsets"][0], shape, dtype)

    def write(self, name: str, tensor: torch.Tensor) -> str:
        """Puts a weight into its place, in the files' dtype; returns the digest of what was written."""
        place = self._places[name]
        assert tuple(tensor.shape) == place.shape, f"{name} is {list(tensor.shape)}, reserved {list(place.shape)}"
        data = _bytes_of(tensor.detach().to("cpu", place.dtype).contiguous())
        handle = os.open(place.file, os.O_WRONLY)
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(handle, data[done : done + _MOST_AT_ONCE], place.offset + done)
        finally:
            os.close(handle)
        self.missing.discard(name)
        return xxhash.xxh3_128_hexdigest(data)


class TensorReader:
    """Weights of a folder that transformers wrote or reads, by name. ValueError where it has no such files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sources = _files(folder)
        self.places = dict(_places(self.sources))

    def read(self, name: str) -> torch.Tensor:
        """A weight in its stored dtype, in memory of its own. ValueError when the folder has none of that name."""
        if name not in self.places:
            raise Mistake(f"{self.folder}: there is no weight {name} in its safetensors files")
        shape = self.places[name].shape
        return self.read_part(name, 0, math.prod(shape)).view(shape)

    def read_part(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements from `start` to `stop` of a weight made flat, as `read` gives it."""
        file, offset, _, dtype = self.places[name]
        tensor = torch.empty(stop - start, dtype=dtype)
        into, done = _bytes_of(tensor), 0
        with file.open("rb", buffering=0) as source:
            source.seek(offset + start * dtype.itemsize)
            while done < len(into):
                count = source.readinto(into[done : done + _MOST_AT_ONCE])
                if not count:
                    raise Mistake(f"{file}: it ends inside the weight {name}; copy it again")
                done += count
        return tensor

    def digest(self, name: str) -> str:
        """What `TensorWriter.write` gave for the weight."""
        return xxhash.xxh3_128_hexdigest(_bytes_of(self.read(name)))

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(math.prod(place.shape) * place.dtype.itemsize for place in self.places.values())


def _places(files: list[Path]) -> Iterator[tuple[str, Place]]:
    known: set[str] = set()
    for file in files:
        for name, place in _places_in(file):
            if name in known:
                raise Mistake(f"{file}: the weight {quoted(name)} is in another file of the folder too; copy it again")
            known.add(name)
            yield name, place


def _files(folder: Path) -> list[Path]:
    """The files of weights of a folder, those of its index where it has one."""
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise Mistake(f"{folder}: no {SINGLE} in it; give a folder whose weights are safetensors")
        return [folder / SINGLE]
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(map(_is_file_name, names.values())):
        raise Mistake(f"{index}: its weight_map does not name *.safetensors files of this folder; copy it again")
    files = [folder / name for name in sorted(set(names.values()))]
    if missing := next((file for file in files if not file.is_file()), None):
        raise Mistake(f"{index}: it names {missing.name}, which is not there; copy it too")
    return files


def _is_file_name(name: Any) -> bool:
    """Whether it names a file of weights beside the index, and none elsewhere."""
    return isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\\0")


def _places_in(file: Path) -> list[tuple[str, Place]]:
    """Where the weights of a file lie. ValueError unless they fill it, one after the other, as its header says."""
    size = file.stat().st_size
    with file.open("rb") as source:
        start = source.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, MOST_HEADER):
            raise Mistake(f"{file}: its header is cut short, or it is no safetensors file; copy it again")
        header = parse_object(file, source.read(length))
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise Mistake(f"{file}: its __metadata__ is no text by names; copy it again")
    found = [(name, *_place(file, 8 + length, name, facts)) for name, facts in header.items()]
    end = 8 + length
    for name, place, place_end in sorted(found, key=lambda each: (each[1].offset, each[2])):
        if place.offset != end:
            raise Mistake(
                f"{file}: the weight {quoted(name)} does not begin where the one before it ends; copy it again"
            )
        if place_end > size:
            raise Mistake(f"{file}: it ends inside the weight {quoted(name)}; copy it again")
        end = place_end
    if end != size:
        raise Mistake(f"{file}: there are {size - end} bytes behind its last weight; copy it again")
    return [(name, place) for name, place, _ in found]


def _place(file: Path, data: int, name: str, facts: Any) -> tuple[Place, int]:
    """Where a weight lies by its entry in the header, and its end; the file's data begin at byte `data`."""
    entry = facts if isinstance(facts, dict) else {}
    kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise Mistake(f"{file}: its header does not say where the weight {quoted(name)} lies; copy it again")
    dtype = _BY_NAME.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        known = ", ".join(_BY_NAME)
        raise Mistake(f"{file}: the weight {quoted(name)} is stored as {quoted(kind)}; allowed are {known}")
    begin, end = offsets
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        text = f"{end - begin} bytes, its shape {quoted(shape)} and dtype {kind} make it {needed}"
        raise Mistake(f"{file}: the weight {quoted(name)} has {text}; copy it again")
    return Place(file, data + begin, tuple(shape), dtype), data + end


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= MOST_DIMS and all(type(x) is int and 0 <= x < 2**62 for x in value)


def in_groups(sizes: Mapping[str, int], most: int) -> Iterator[Sequence[str]]:
    """Names in their order, in groups of at most `most` bytes; a larger tensor is a group of its own.

    `sizes` are bytes by name; no names make one empty group.
    """
    names: list[str] = []
    size = 0
    for name, count in sizes.items():
        if names and size + count > most:
            yield names
            names, size = [], 0
        names.append(name)
        size += count
    yield names


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous host tensor, shared with it."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
