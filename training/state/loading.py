"""Reading a checkpoint: into the engine of any stage and number of ranks, or one weight after another for export."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.exchange.tensor_files import in_groups
from training.state.boxes import Box
from training.state.choosing import Checkpoint, read_index
from training.state.identity import RunState
from training.state.index import WEIGHT, Copy, Index
from training.state.layout import Layout, Opened
from training.state.parts import Parts

if TYPE_CHECKING:
    from training.engine import Engine

BATCH_BYTES = 64 * 2**20
"""Weights read between two passes over the parts; a larger weight has a pass of its own."""


def load(engine: "Engine", checkpoint: Checkpoint) -> RunState:
    """Restores weights and moments, each rank its own part of them; all ranks call it together."""
    engine.load(checkpoint.folder, checkpoint.index)
    return checkpoint.state


def fill(parts: Parts, layout: Layout, rank: int, opened: Opened) -> None:
    """Reads what `rank` of a layout holds into its flat vectors, one after another; padding is left as it is."""
    plan: dict[int, dict[int, list[Copy]]] = {}
    for part, copies in sorted(parts.index.copies(layout, rank).items()):
        for copy in copies:
            plan.setdefault(copy.vector, {}).setdefault(part, []).append(copy)
    for vector, wanted in sorted(plan.items()):
        with opened(vector) as kinds:
            for part, copies in wanted.items():
                for kind, into in kinds.items():
                    for copy in copies:
                        parts.read(part, kind, copy.source, into.narrow(0, copy.target, copy.length))


def stream_weights(folder: Path, kind: str = WEIGHT) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and fp32 weights, on the host, of a checkpoint that was found sound, one after another.

    Memory is that of one weight and BATCH_BYTES, whatever the size of the model. `kind` may name a moment instead: of
    those parameters that have it.
    """
    index = read_index(folder)
    with Parts(folder, index) as parts:
        sizes = {name: 4 * Box.whole(name, index.tensors[name]).size for name in index.names(kind)}
        for names in in_groups(sizes, BATCH_BYTES):
            yield from _read(parts, index, names, kind).items()


def load_weights(folder: Path, kind: str = WEIGHT) -> dict[str, torch.Tensor]:
    """All of `stream_weights` at once."""
    return dict(stream_weights(folder, kind))


def _read(parts: Parts, index: Index, names: Sequence[str], kind: str) -> dict[str, torch.Tensor]:
    weights = {name: torch.empty(index.tensors[name]) for name in names}
    pieces = [
        (held, weights[name].view(-1)[at : at + held.length])
        for name in names
        for held, at in index.find(Box.whole(name, index.tensors[name]), 0, weights[name].numel())
    ]
    for held, into in sorted(pieces, key=lambda piece: piece[0].part):
        parts.read(held.part, kind, held.offset, into)
    return weights
