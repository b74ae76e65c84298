"""The weights of a checkpoint one at a time, put together from whatever ranks and ZeRO stage wrote them.

    files of ranks, mapped -> pieces of some parameters (reshard.py says where they lie) -> one weight after another
                   ^ let go and mapped again after every BATCH_BYTES, so that what was read does not pile up

DeepSpeed's own zero_to_fp32 holds the whole model, and its pieces beside it.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from model.exchange.tensor_files import in_groups
from training.reshard import WEIGHT, SavedState, Slice

BATCH_BYTES = 64 * 2**20
"""Weights read between two mappings of the files; a larger weight has one of its own."""


def stream_weights(folder: Path, stage: int, num_ranks: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and fp32 weights, on the host, that `num_ranks` ranks saved in DeepSpeed's `folder` at ZeRO `stage`.

    Memory is that of one weight and BATCH_BYTES, whatever the size of the model. Raises ValueError when parts of the
    state lie where only the ranks that wrote them look.
    """
    if stage == 0:
        yield from _stream_whole(folder)
        return
    saved = SavedState(folder, stage, num_ranks, ())
    shapes = {name: shape for group in saved.facts["param_shapes"] for name, shape in group.items()}
    held: dict[str, list[tuple[int, Slice]]] = {}
    for rank in range(num_ranks):
        for piece in saved.layout.slices(rank):
            held.setdefault(piece.name, []).append((rank, piece))
    del saved
    for names in in_groups({name: 4 * shape.numel() for name, shape in shapes.items()}, BATCH_BYTES):
        files = SavedState(folder, stage, num_ranks, ())
        vectors = {rank: files.vectors(rank)[WEIGHT] for rank in sorted({rank for n in names for rank, _ in held[n]})}
        for name in names:
            yield name, _assemble(shapes[name], held[name], vectors)


def _assemble(
    shape: torch.Size, pieces: list[tuple[int, Slice]], vectors: dict[int, list[torch.Tensor]]
) -> torch.Tensor:
    flat = torch.empty(shape.numel())
    for rank, piece in pieces:
        flat[piece.start : piece.start + piece.length] = vectors[rank][piece.vector].narrow(
            0, piece.offset, piece.length
        )
    assert sum(piece.length for _, piece in pieces) == shape.numel(), "pieces of a parameter are missing"
    return flat.view(shape)


def _stream_whole(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    sizes = {name: weight.nbytes for name, weight in _module(folder).items()}
    for names in in_groups(sizes, BATCH_BYTES):
        module = _module(folder)
        for name in names:
            yield name, module[name].clone()


def _module(folder: Path) -> dict[str, torch.Tensor]:
    file = next(folder.glob("*model_states.pt"))
    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)["module"]
