"""Puts first weights into what a rank holds, drawn ones or imported ones, a parameter at a time.

    model on the meta device -> empty memory of what the rank holds -> fp32 vectors filled -> what it computes with

    ZeRO 0      ranks take turns: one makes a parameter and all get it
    ZeRO 1, 2   a rank makes what its part of the vectors overlaps
    ZeRO 3      ranks take turns: one makes a parameter and each gets its part

So no rank makes more than it must, and none ever holds the model in fp32 unless it keeps it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from training.distributed import World
from training.mesh import Axis
from training.state.boxes import Box
from training.state.layout import Layout

Fill = Callable[[str, torch.Tensor, int], None]
"""(name, out [n], start) -> writes the parameter's values from place `start` of it made flat into `out`."""

Thing = TypeVar("Thing")


def give_memory(parameter: nn.Parameter, dtype: torch.dtype, device: torch.device) -> None:
    """Moves a parameter from the meta device to memory that nothing has been written to; it stays the same object.

    So an optimizer made before, from shapes alone, holds it, and tied weights stay tied.
    """
    memory = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device), parameter.requires_grad)
    torch.utils.swap_tensors(parameter, memory)


def put_weights(layout: Layout, vectors: Sequence[torch.Tensor], world: World, fill: Fill) -> None:
    """Writes the weights that `fill` gives into this rank's flat fp32 vectors; every rank must call it."""
    if layout.is_replicated:
        _put_whole(layout, vectors, world.mesh.data, fill)
    elif layout.cuts_parameters:
        _put_parts(layout, vectors, world, fill)
    else:
        for piece in layout.slices(world.mesh.data.rank):
            fill(piece.box.name, vectors[piece.vector].narrow(0, piece.offset, piece.length), piece.start)


def _put_whole(layout: Layout, vectors: Sequence[torch.Tensor], axis: Axis, fill: Fill) -> None:
    boxes = [(box, number) for number, (box,) in enumerate(layout.vectors)]

    def make(turn: tuple[Box, int]) -> None:
        fill(turn[0].name, vectors[turn[1]], 0)

    for owner, (_, number), _ in _in_turns(boxes, make, axis):
        if axis.size > 1:
            dist.broadcast(vectors[number], axis.members[owner], group=axis.group)


def _put_parts(layout: Layout, vectors: Sequence[torch.Tensor], world: World, fill: Fill) -> None:
    axis = world.mesh.data

    def make(box: Box) -> list[torch.Tensor]:
        part = -(-box.size // axis.size)
        whole = torch.zeros(part * axis.size, device=world.device)
        fill(box.name, whole[: box.size], 0)
        return list(whole.split(part))

    for boxes, vector in zip(layout.vectors, vectors, strict=True):
        at = 0
        for owner, box, parts in _in_turns(boxes, make, axis):
            part = -(-box.size // axis.size)
            mine = torch.empty(part, device=world.device) if parts is None else parts[axis.rank]
            if axis.size > 1:
                dist.scatter(mine, parts, axis.members[owner], group=axis.group)
            vector.narrow(0, at, part).copy_(mine)
            at += part


def _in_turns(
    things: Sequence[Thing], make: Callable[[Thing], list[torch.Tensor] | None], axis: Axis
) -> Iterator[tuple[int, Thing, list[torch.Tensor] | None]]:
    """Each thing with the rank that makes it, and there with what it made; all ranks make one at the same time."""
    for first in range(0, len(things), axis.size):
        turn = things[first : first + axis.size]
        made = make(turn[axis.rank]) if axis.rank < len(turn) else None
        for owner, thing in enumerate(turn):
            yield owner, thing, made if owner == axis.rank else None
