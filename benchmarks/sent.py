"""Counts what a rank sends, collective by collective, whoever asks for it."""

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

COSTS = {
    "allreduce_": ("tensors", 2),
    "_allgather_base_": ("output", 1),
    "_reduce_scatter_base_": ("input", 1),
    "alltoall_base_": ("input", 1),
}
"""Collectives of torch by name: which tensors they carry, and how often a ring sends (n - 1) / n of those."""


class SentBytes(TorchDispatchMode):
    """While it is active: bytes that this rank sends, by the members of the group that it sends them to."""

    def __init__(self) -> None:
        super().__init__()
        self.by_members: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Looks at one operation and does it."""
        name = func._schema.name.removeprefix("c10d::")
        if name in COSTS:
            carried, times = COSTS[name]
            tensors, group = self._carried(carried, args)
            members = tuple(dist.get_process_group_ranks(group))
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.by_members[members] += times * size * (len(members) - 1) / len(members)  # type: ignore[assignment]
        return func(*args, **(kwargs or {}))

    def _carried(self, what: str, args: tuple) -> tuple[list[torch.Tensor], Any]:
        group = dist.ProcessGroup.unbox(next(arg for arg in args if isinstance(arg, torch.ScriptObject)))
        if what == "tensors":
            return list(args[0]), group
        return [args[0] if what == "output" else args[1]], group
