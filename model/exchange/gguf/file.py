"""GGUF files, one tensor at a time: written into places that were reserved, read by the library's own reader.

    sizes of all tensors -> header by the gguf package, a hole behind it -> each tensor goes to its place as it comes
    header by the gguf package's reader -> place of a tensor -> its bytes, its digest or its values in float32

The package's writer takes tensors in the order of the header, or holds all of them; here memory is one tensor's, in any
order. Its reader maps the file, of which no more than the header is looked at. Matrices are stored in the type that is
asked for; norms, biases and what follows from the config stay float32, which llama.cpp wants.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash

from common.mistakes import Mistake

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""Types of matrices: what we call them and what the gguf package does."""
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
"""And how `general.file_type` does."""
MOST_F16 = 65504.0
"""Largest number of float16."""
_ELEMENTS_AT_ONCE = 2**24
"""Numbers converted at once, so that a large embedding needs no second copy in float32."""
_BYTES_AT_ONCE = 2**26


class GgufPlace(NamedTuple):
    """Where a tensor lies."""

    offset: int
    """Bytes from the beginning of the file."""
    num_bytes: int
    shape: tuple[int, ...]
    """Rows and columns, as in torch."""
    type: str
    """One of `TYPES`."""


class GgufWriter:
    """Tensors of `shapes` by name in a new file, behind a header that `metadata` (the package's writer) holds."""

    def __init__(self, file: Path, metadata: Any, shapes: Mapping[str, tuple[int, ...]], matrix_type: str):
        import gguf

        self._file = file
        self._places: dict[str, GgufPlace] = {}
        for name, shape in shapes.items():
            kind = matrix_type if is_matrix(name, shape) else "f32"
            size = tensor_bytes(name, shape, matrix_type)
            quantization = gguf.GGMLQuantizationType[TYPES[kind]]
            metadata.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=quantization)
            self._places[name] = GgufPlace(0, size, shape, kind)
        metadata.write_header_to_file(file)
        metadata.write_kv_data_to_file()
        metadata.write_ti_data_to_file()
        end = metadata.fout[0].tell()
        metadata.close()
        for name, place in self._places.items():
            start = metadata.ggml_pad(end, metadata.data_alignment)
            self._places[name] = place._replace(offset=start)
            end = start + place.num_bytes
        os.truncate(file, metadata.ggml_pad(end, metadata.data_alignment))

    def write(self, name: str, tensor: torch.Tensor) -> str:
        """Puts a tensor into its place, in its type; returns the digest of what was written."""
        place, digest, done = self._places[name], xxhash.xxh3_128(), 0
        assert tuple(tensor.shape) == place.shape, f"{name} is {list(tensor.shape)}, reserved {list(place.shape)}"
        with self._file.open("r+b", buffering=0) as file:
            file.seek(place.offset)
            for piece in _encoded(name, tensor.detach().to("cpu"), place.type):
                digest.update(piece)
                while len(piece):
                    count = file.write(piece)
                    piece, done = piece[count:], done + count
        assert done == place.num_bytes, f"{name} has {done} bytes, reserved {place.num_bytes}"
        return digest.hexdigest()


class GgufFile:
    """A file that the gguf package reads: keys by name, tensors one at a time. ValueError where it is none."""

    def __init__(self, file: Path):
        import gguf

        self.path = file
        try:
            reader = gguf.GGUFReader(file)
        except Exception as error:  # it raises what it pleases on a file that is none
            raise Mistake(f"{file}: it is no GGUF file that can be read ({type(error).__name__})") from error
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        names = {value: key for key, value in TYPES.items()}
        self.places = {
            tensor.name: GgufPlace(
                int(tensor.data_offset),
                int(tensor.n_bytes),
                tuple(int(size) for size in reversed(tensor.shape)),
                names.get(tensor.tensor_type.name, tensor.tensor_type.name),
            )
            for tensor in reader.tensors
        }

    def digest(self, name: str) -> str:
        """What `GgufWriter.write` gave for the tensor."""
        place, digest = self.places[name], xxhash.xxh3_128()
        for start in range(0, place.num_bytes, _BYTES_AT_ONCE):
            digest.update(self._bytes(place.offset + start, min(_BYTES_AT_ONCE, place.num_bytes - start)).data)
        return digest.hexdigest()

    def read(self, name: str) -> torch.Tensor:
        """A tensor's values, float32, in memory of their own."""
        import gguf

        place = self.places[name]
        values = torch.empty(place.shape)
        flat, width = values.view(-1, place.shape[-1]), place.shape[-1]
        row_bytes = place.num_bytes // len(flat)
        rows = max(1, _ELEMENTS_AT_ONCE // width)
        for start in range(0, len(flat), rows):
            count = min(rows, len(flat) - start)
            stored = self._bytes(place.offset + start * row_bytes, count * row_bytes).reshape(count, row_bytes)
            numbers = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[TYPES[place.type]])
            flat[start : start + count] = torch.from_numpy(numbers.reshape(count, width))
        return values

    def _bytes(self, start: int, count: int) -> np.ndarray:
        return np.fromfile(self.path, np.uint8, count, offset=start)


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is stored in the type asked for: not vectors, and not small tables of positions and segments."""
    return len(shape) == 2 and not name.endswith(("attn_rel_b.weight", "position_embd.weight", "token_types.weight"))


def tensor_bytes(name: str, shape: tuple[int, ...], matrix_type: str) -> int:
    """Bytes of a tensor in a file. ValueError where rows do not fill the blocks of its type."""
    import gguf

    kind = gguf.GGMLQuantizationType[TYPES[matrix_type if is_matrix(name, shape) else "f32"]]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise Mistake(
            f"{name}: its rows have {shape[-1]} numbers and {matrix_type} stores them in blocks of {block}; "
            "use f16 or bf16"
        )
    return int(np.prod(shape, dtype=np.int64)) // block * block_bytes


def _encoded(name: str, tensor: torch.Tensor, kind: str) -> Iterator[memoryview]:
    """A tensor in a type of `TYPES`, some rows at a time."""
    import gguf

    width = tensor.shape[-1]
    for rows in tensor.reshape(-1, width).split(max(1, _ELEMENTS_AT_ONCE // width)):
        numbers = rows.float().contiguous()
        if kind == "f16" and not numbers.abs().amax() <= MOST_F16:
            raise Mistake(f"{name}: it holds a number beyond {MOST_F16:g}, the largest of f16; use bf16 or f32")
        stored = gguf.quants.quantize(numbers.numpy(), gguf.GGMLQuantizationType[TYPES[kind]])
        yield np.ascontiguousarray(stored).reshape(-1).view(np.uint8).data
