"""The edge to megatron-core: how the ranks that share layers talk. The one module that imports it.

Its collectives that know their own gradients, and its column-parallel product, which overlaps what it sends with what
it computes; the layers around them are ours. Groups come from the mesh, so that a rank joins its own and no others.
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist

from training.mesh import Axis

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it tells of packages that it would use if they were there
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import layers, mappings

if not torch.cuda.is_available():
    # where megatron-core makes memory for what it gathers
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]


class MegatronRanks:
    """`model.network.tensor_ranks.TensorRanks` on a process group."""

    def __init__(self, axis: Axis, sequence: bool):
        self.rank, self.size, self.sequence = axis.rank, axis.size, sequence
        self._group: Any = axis.group or dist.group.WORLD
        if parallel_state._GLOBAL_MEMORY_BUFFER is None:
            parallel_state._set_global_memory_buffer()

    @torch.compiler.disable
    def cut_rows(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `TensorRanks`."""
        return layers.linear_with_grad_accumulation_and_async_allreduce(
            x.contiguous(),
            weight,
            bias,
            gradient_accumulation_fusion=False,
            allreduce_dgrad=not self.sequence,
            sequence_parallel=self.sequence,
            tp_group=self._group,
        )

    @torch.compiler.disable
    def summed(self, partial: torch.Tensor) -> torch.Tensor:
        """See `TensorRanks`."""
        partial = partial.contiguous()
        if self.sequence:
            return mappings.reduce_scatter_to_sequence_parallel_region(partial, group=self._group)
        return mappings.reduce_from_tensor_model_parallel_region(partial, group=self._group)

    @torch.compiler.disable
    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """See `TensorRanks`."""
        if self.sequence:
            return mappings.gather_from_sequence_parallel_region(x.contiguous(), group=self._group)
        return self.shared(x)

    def own_rows(self, x: torch.Tensor) -> torch.Tensor:
        """See `TensorRanks`."""
        return x.chunk(self.size)[self.rank] if self.sequence else x

    @torch.compiler.disable
    def shared(self, weight: torch.Tensor) -> torch.Tensor:
        """See `TensorRanks`."""
        return _Shared.apply(weight, self._group)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See `TensorRanks`."""
        return self._reduced(x, dist.ReduceOp.SUM)

    def max(self, x: torch.Tensor) -> torch.Tensor:
        """See `TensorRanks`."""
        return self._reduced(x, dist.ReduceOp.MAX)

    def _reduced(self, x: torch.Tensor, how: Any) -> torch.Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, how, group=self._group)
        return total


class _Shared(torch.autograd.Function):
    """The same forward, summed over the ranks backward; megatron-core's would sum into a gradient others may hold."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None
