"""Where a rank stands among R ranks: a grid with one axis for each way of sharing work.

    rank = (data * context_size + context) * tensor_size + tensor

Whoever needs a number takes the axis it means: order and accumulation the data axis, layers the tensor axis, attention
the context axis, gradients and ZeRO the replicas, which are data and context axis together. Tensor ranks are
neighbours, because they talk most and should share a node. All here is arithmetic on a few integers; process groups are
made from it once, and only for axes that do not span the world.
"""

import dataclasses
from typing import Any

import torch.distributed as dist

from common.mistakes import Mistake

AXES = ("data", "context", "tensor")
"""Names of the axes, the slowest first."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """The ranks that differ from this one in one coordinate only."""

    name: str
    """`data`, `context`, `tensor` or `replicas`."""
    rank: int
    """This rank's coordinate, 0 .. size - 1."""
    size: int
    """How many ranks there are along the axis."""
    first: int
    """Global rank of the member with coordinate 0."""
    stride: int
    """Distance of neighbouring members in global ranks."""
    group: Any = None
    """Process group of the members for tensors; None is the default group, and no group at all for an axis of one."""

    @property
    def members(self) -> range:
        """Global ranks along the axis, in order."""
        return range(self.first, self.first + self.size * self.stride, self.stride)


def sharing(*, tensor: int, context: int) -> str:
    """How many ranks share a layer and a row, in words that follow others; nothing where none do."""
    named = {"to a layer": tensor, "to a row": context}
    return "".join(f", {size} {words}" for words, size in named.items() if size > 1)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """One rank's place on all axes."""

    rank: int
    """Global rank, 0 .. size - 1."""
    size: int
    """Number of ranks, R."""
    data: Axis
    """Ranks that hold the same part of the model and read other samples."""
    context: Axis
    """Ranks that read parts of the same rows."""
    tensor: Axis
    """Ranks that hold parts of the same layers."""
    replicas: Axis
    """Ranks that hold the same part of the model, data and context axis together: gradients are summed over them, and
    ZeRO cuts the training state between them."""

    @classmethod
    def of(cls, rank: int, size: int, *, tensor: int = 1, context: int = 1) -> "Mesh":
        """The place of `rank` of `size`. ValueError when the axes do not divide the number of ranks."""
        if size % (tensor * context):
            raise Mistake(
                f"parallel: {size} ranks are no multiple of tensor {tensor} times context {context}; "
                "change the number of ranks or one of the two"
            )
        assert 0 <= rank < size, f"rank {rank} of {size}"
        sizes = {"data": size // (tensor * context), "context": context, "tensor": tensor}
        axes, stride = {}, 1
        for name in reversed(AXES):
            coordinate = rank // stride % sizes[name]
            axes[name] = Axis(name, coordinate, sizes[name], rank - coordinate * stride, stride)
            stride *= sizes[name]
        replicas = Axis("replicas", rank // tensor, size // tensor, rank % tensor, tensor)
        return cls(rank, size, **axes, replicas=replicas)

    @property
    def part(self) -> int:
        """Number of the part of the training state that this rank writes: tensor ranks one behind another."""
        return self.tensor.rank * self.replicas.size + self.replicas.rank

    def with_groups(self) -> "Mesh":
        """The same with a process group for every axis that neither spans the world nor is one rank alone.

        All ranks call it together. Each makes only the groups that it is in, so there are at most four.
        """
        data, context, tensor = map(self._grouped, (self.data, self.context, self.tensor))
        same = self.context.size == 1
        replicas = dataclasses.replace(self.replicas, group=data.group) if same else self._grouped(self.replicas)
        return dataclasses.replace(self, data=data, context=context, tensor=tensor, replicas=replicas)

    def _grouped(self, axis: Axis) -> Axis:
        if axis.size in (1, self.size):
            return axis
        group = dist.new_group(list(axis.members), use_local_synchronization=True, group_desc=axis.name)
        return dataclasses.replace(axis, group=group)
