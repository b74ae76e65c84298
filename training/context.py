"""How ranks that share rows exchange heads for tokens: one all-to-all each way.

Our own, for DeepSpeed's Ulysses class takes no pattern and no mask: prefix, encoder and cross attention would become
causal in silence.
"""

from typing import Any

import torch
import torch.distributed as dist

from training.mesh import Axis


class HeadExchange:
    """`model.network.context_ranks.ContextRanks` on a process group."""

    def __init__(self, axis: Axis):
        self.rank, self.size = axis.rank, axis.size
        self._group: Any = axis.group

    def all_rows(self, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `ContextRanks`; what has as many rows travels together."""
        if len({part.shape[0] for part in parts}) > 1:
            return tuple(self.all_rows(part)[0] for part in parts)
        shares = [part.shape[1] // self.size for part in parts]
        # [rows, heads, D] -> [ranks, rows, own heads of all, D]
        sent = torch.cat([part.unflatten(1, (self.size, -1)) for part in parts], 2).transpose(0, 1)
        return _Exchange.apply(sent, self._group).flatten(0, 1).split(shares, 1)

    def own_rows(self, x: torch.Tensor) -> torch.Tensor:
        """See `ContextRanks`."""
        received = _Exchange.apply(x.unflatten(0, (self.size, -1)), self._group)  # [ranks, own rows, heads, D]
        return received.transpose(0, 1).flatten(1, 2)


class _Exchange(torch.autograd.Function):
    """Element i of the first dim goes to rank i; gradients go back the same way."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _exchanged(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _exchanged(grad, ctx.group), None


def _exchanged(x: torch.Tensor, group: Any) -> torch.Tensor:
    x = x.contiguous()
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x, group=group)
    return received
