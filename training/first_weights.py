"""Puts first weights into what a rank holds, drawn ones or imported ones, a parameter at a time.

    model on the meta device -> empty memory of what the rank holds -> fp32 vectors filled -> what it computes with

    ZeRO 0      ranks take turns: one makes a parameter and all get it
    ZeRO 1, 2   a rank makes what its part of the vectors overlaps
    ZeRO 3      ranks take turns: one makes a parameter and each gets its part

So no rank makes more than it must, and none ever holds the model in fp32 unless it keeps it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from training.distributed import World
from training.mesh import Axis
from training.state.boxes import Box
from training.state.index import WEIGHT
from training.state.layout import Layout, Opened, Share

Fill = Callable[[Box, torch.Tensor, int], None]
"""(box, out [n], start) -> writes what the box of a parameter holds, made flat, from place `start` on into `out`."""
Blocks = Callable[[str, int, int], Iterator[tuple[int, torch.Tensor]]]
"""(name, start, stop) -> the values of a parameter made flat, block by block, each with the place where it begins."""

Thing = TypeVar("Thing")


def give_memory(parameter: nn.Parameter, dtype: torch.dtype, device: torch.device) -> None:
    """Moves a parameter from the meta device to memory that nothing has been written to; it stays the same object.

    So an optimizer made before, from shapes alone, holds it, and tied weights stay tied.
    """
    memory = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device), parameter.requires_grad)
    torch.utils.swap_tensors(parameter, memory)


def fill_from(blocks: Blocks) -> Fill:
    """Writes boxes out of parameters that come in blocks; memory is a block's, and time that of the blocks passed."""

    def fill(box: Box, out: torch.Tensor, start: int) -> None:
        runs = _Runs.of(box)
        stop = start + out.numel()
        for begin, values in blocks(box.name, runs.place(start), runs.place(stop - 1) + 1):
            first, last = (min(max(runs.before(at), start), stop) for at in (begin, begin + len(values)))
            if first < last:
                out[first - start : last - start].copy_(runs.pick(values, begin, first, last))

    return fill


@dataclasses.dataclass(frozen=True)
class _Runs:
    """A box of a tensor as rows of equal runs: which elements of the tensor made flat are the box's."""

    length: int
    """Elements of a run."""
    stride: int
    """Elements from one run to the next."""
    first: int
    """Place of the first one."""
    count: int
    """How many runs."""

    @classmethod
    def of(cls, box: Box) -> "_Runs":
        """Runs of a box that is cut in one dim at most."""
        cut = [dim for dim, extent in enumerate(box.shape) if extent != box.tensor[dim]] or [0]
        assert len(cut) == 1, f"{box} is cut in more than one dim"
        if not box.shape:
            return cls(1, 1, 0, 1)
        inner = math.prod(box.shape[cut[0] + 1 :])
        length, stride = box.shape[cut[0]] * inner, box.tensor[cut[0]] * inner
        return cls(length, stride, box.offset[cut[0]] * inner, math.prod(box.shape[: cut[0]]))

    def place(self, number: int) -> int:
        """Where in the tensor an element of the box is."""
        run, inside = divmod(number, self.length)
        return self.first + run * self.stride + inside

    def before(self, place: int) -> int:
        """How many elements of the box lie before a place of the tensor."""
        run, inside = divmod(max(place - self.first, 0), self.stride)
        return min(run, self.count) * self.length + (min(inside, self.length) if run < self.count else 0)

    def pick(self, values: torch.Tensor, begin: int, first: int, last: int) -> torch.Tensor:
        """Elements `first` to `last` of the box out of values that begin at a place of the tensor."""
        if self.count == 1:
            at = self.first + first - begin
            return values[at : at + last - first]
        number = torch.arange(first, last)
        return values[number // self.length * self.stride + number % self.length + (self.first - begin)]


def put_weights(layout: Layout, opened: Opened, world: World, fill: Fill) -> None:
    """Writes the weights that `fill` gives into this rank's flat fp32 vectors; every rank must call it."""
    if layout.is_replicated:
        _put_whole(layout, opened, world.mesh.replicas, fill)
    elif layout.cuts_parameters:
        _put_parts(layout, opened, world, fill)
    else:
        for piece in layout.slices(world.mesh.replicas.rank):
            with opened(piece.vector) as kinds:
                fill(piece.box, kinds[WEIGHT].narrow(0, piece.offset, piece.length), piece.start)


def _put_whole(layout: Layout, opened: Opened, axis: Axis, fill: Fill) -> None:
    shares = list(enumerate(layout.vectors))

    def make(turn: tuple[int, Share]) -> None:
        number, share = turn
        with opened(number) as kinds:
            _fill_share(share, kinds[WEIGHT], fill)

    for owner, (number, _), _ in _in_turns(shares, make, axis):
        if axis.size > 1:
            with opened(number) as kinds:
                dist.broadcast(kinds[WEIGHT], axis.members[owner], group=axis.group)


def _put_parts(layout: Layout, opened: Opened, world: World, fill: Fill) -> None:
    axis = world.mesh.replicas

    def make(share: Share) -> list[torch.Tensor]:
        size = sum(box.size for box in share)
        part = -(-size // axis.size)
        whole = torch.zeros(part * axis.size, device=world.device)
        _fill_share(share, whole[:size], fill)
        return list(whole.split(part))

    for number in range(len(layout.vectors)):
        with opened(number) as kinds:
            at = 0
            for owner, share, parts in _in_turns(list(layout.shares(number)), make, axis):
                part = -(-sum(box.size for box in share) // axis.size)
                mine = torch.empty(part, device=world.device) if parts is None else parts[axis.rank]
                if axis.size > 1:
                    dist.scatter(mine, parts, axis.members[owner], group=axis.group)
                kinds[WEIGHT].narrow(0, at, part).copy_(mine)
                at += part


def _fill_share(share: Share, out: torch.Tensor, fill: Fill) -> None:
    """What a rank holds of a parameter, one box behind another."""
    for box, into in zip(share, out.split([box.size for box in share]), strict=True):
        fill(box, into, 0)


def _in_turns(
    things: Sequence[Thing], make: Callable[[Thing], list[torch.Tensor] | None], axis: Axis
) -> Iterator[tuple[int, Thing, list[torch.Tensor] | None]]:
    """Each thing with the rank that makes it, and there with what it made; all ranks make one at the same time."""
    for first in range(0, len(things), axis.size):
        turn = things[first : first + axis.size]
        made = make(turn[axis.rank]) if axis.rank < len(turn) else None
        for owner, thing in enumerate(turn):
            yield owner, thing, made if owner == axis.rank else None
