"""Where a rank stands among R ranks: a grid with one axis for each way of sharing work.

    rank = (data * context_size + context) * tensor_size + tensor

Whoever needs a number takes the axis it means: order, accumulation and the loss the data axis, layers the tensor axis,
attention the context axis. Tensor ranks are neighbours, because they talk most and should share a node. All here is
arithmetic on a few integers; process groups are made from it once, and only for axes that do not span the world.
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
    """`data`, `context` or `tensor`."""
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
        return cls(rank, size, **axes)

    def with_groups(self) -> "Mesh":
        """The same with a process group for every axis that does not span the world; all ranks call it together."""
        if self.data.size == self.size:
            return self
        groups = dist.device_mesh.init_device_mesh(
            "cuda" if dist.get_backend() == "nccl" else "cpu",
            tuple(getattr(self, name).size for name in AXES),
            mesh_dim_names=AXES,
        )
        axes = {name: dataclasses.replace(getattr(self, name), group=groups.get_group(name)) for name in AXES}
        return dataclasses.replace(self, **axes)
