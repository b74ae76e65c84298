"""Puts first weights into what a rank holds: drawn ones or imported ones, a parameter at a time.

    model on the meta device -> empty memory of what the rank holds -> fp32 master weights -> weights to compute with

    ZeRO 0      ranks take turns: one makes a parameter and all get it
    ZeRO 1, 2   a rank makes what its part of the master weights overlaps; then all gather the weights to compute with
    ZeRO 3      ranks take turns: one makes a parameter and each gets its part

So no rank makes more than it must and none ever holds the model in fp32, unless it keeps it. What is private of
DeepSpeed's optimizers is read here, not in the engine.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from training.distributed import World

Fill = Callable[[str, torch.Tensor, int], None]
"""(name, out [n], start) -> writes the parameter's values from place `start` of it made flat into `out`."""


def give_memory(parameter: nn.Parameter, dtype: torch.dtype, device: torch.device) -> None:
    """Moves a parameter from the meta device to memory that nothing has been written to; it stays the same object.

    So an optimizer made before, from shapes alone, holds it, and tied weights stay tied.
    """
    memory = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device), parameter.requires_grad)
    torch.utils.swap_tensors(parameter, memory)


@torch.no_grad()
def put_weights(module: nn.Module, optimizer: Any, stage: int, fill: Fill, world: World) -> None:
    """Writes the weights that `fill` gives into the master weights and the weights to compute with of this rank.

    `optimizer` is DeepSpeed's at `stage`; every rank must call it.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    if stage == 0:
        _put_whole(dict(module.named_parameters()), fill, world)
    elif stage == 3:
        _put_parts(names, optimizer, fill, world)
    else:
        for parameter, master, start in _overlaps(optimizer, world.rank):
            fill(names[id(parameter)], master, start)
        optimizer.update_lp_params()


def _overlaps(optimizer: Any, rank: int) -> Iterator[tuple[nn.Parameter, torch.Tensor, int]]:
    """Each parameter that this rank has a part of, its part of the master weights, and where the part begins in it.

    The weights to compute with lie in one row per group, in whatever order; each rank's masters are a piece of it.
    """
    groups = optimizer.bit16_groups, optimizer.bit16_groups_flat, optimizer.single_partition_of_fp32_groups
    for parameters, row, masters in zip(*groups, strict=True):
        begin = rank * masters.numel()
        for parameter in parameters:
            place = (parameter.data_ptr() - row.data_ptr()) // row.element_size()
            first, last = max(place, begin), min(place + parameter.numel(), begin + masters.numel())
            if first < last:
                yield parameter, masters[first - begin : last - begin], first - place


def _put_whole(parameters: dict[str, nn.Parameter], fill: Fill, world: World) -> None:
    def make(name: str) -> None:
        fill(name, parameters[name].view(-1), 0)

    for name, owner, _ in _in_turns(list(parameters), make, world):
        if world.size > 1:
            dist.broadcast(parameters[name].data, owner)


def _put_parts(names: dict[int, str], optimizer: Any, fill: Fill, world: World) -> None:
    for number, group in enumerate(optimizer.fp16_groups):
        on_disk = optimizer._swappable_optimizer_subgroup(number)
        if on_disk:
            optimizer._optimizer_states_and_gradient_swap_in(number)
        sizes = {names[id(parameter)]: (parameter.ds_numel, parameter.partition_numel()) for parameter in group}
        _put_group(optimizer.fp32_partitioned_groups_flat[number], sizes, fill, world)
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if on_disk:
            optimizer._optimizer_states_and_gradient_swap_out(number)
    optimizer.invalidate_secondary_tensor()


def _put_group(master: torch.Tensor, sizes: dict[str, tuple[int, int]], fill: Fill, world: World) -> None:
    """Fills this rank's part of some parameters, one after the other; sizes are elements of all and of a part."""

    def make(name: str) -> list[torch.Tensor]:
        numel, part = sizes[name]
        whole = torch.zeros(part * world.size, device=world.device)
        fill(name, whole[:numel], 0)
        return list(whole.split(part))

    offset = 0
    for name, owner, parts in _in_turns(list(sizes), make, world):
        part = sizes[name][1]
        mine = torch.empty(part, device=world.device) if parts is None else parts[world.rank]
        if world.size > 1:
            dist.scatter(mine, parts, owner)
        master[offset : offset + part].copy_(mine)
        offset += part


def _in_turns(names: Sequence[str], make: Callable[[str], Any], world: World) -> Iterator[tuple[str, int, Any]]:
    """Each name with the rank that makes it, and there with what it made: all ranks make one at the same time."""
    for first in range(0, len(names), world.size):
        turn = names[first : first + world.size]
        made = make(turn[world.rank]) if world.rank < len(turn) else None
        for owner, name in enumerate(turn):
            yield name, owner, made if owner == world.rank else None
