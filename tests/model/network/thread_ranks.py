"""Tensor ranks that are threads of one process and exchange tensors as they are: nobody's library, any dtype."""

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


class Meeting:
    """Where the ranks hand each other tensors."""

    def __init__(self, size: int):
        self.barrier, self.slots = threading.Barrier(size, timeout=60), [None] * size


class ThreadRanks:
    """`TensorRanks` among threads; forward and backward of what it does are each other's adjoint by construction."""

    def __init__(self, rank: int, size: int, sequence: bool, meeting: Meeting):
        self.rank, self.size, self.sequence, self._meeting = rank, size, sequence, meeting

    def exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What every rank gives."""
        self._meeting.slots[self.rank] = x.detach()
        self._meeting.barrier.wait()
        given = list(self._meeting.slots)
        self._meeting.barrier.wait()
        return given

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.exchange(x)).sum(0)

    def max(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.exchange(x)).amax(0)

    def own_rows(self, x: torch.Tensor) -> torch.Tensor:
        return x.chunk(self.size)[self.rank] if self.sequence else x

    def summed(self, partial: torch.Tensor) -> torch.Tensor:
        gather = lambda grad: torch.cat(self.exchange(grad)) if self.sequence else grad  # noqa: E731
        return Linked.apply(partial, lambda x: self.own_rows(self.sum(x)), gather)

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        gather = lambda x: torch.cat(self.exchange(x)) if self.sequence else x  # noqa: E731
        return Linked.apply(x, gather, lambda grad: self.own_rows(self.sum(grad)))

    def shared(self, weight: torch.Tensor) -> torch.Tensor:
        return Linked.apply(weight, lambda x: x, self.sum)

    def cut_rows(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(self.whole(x), weight, bias)


class ThreadContext:
    """`ContextRanks` among the threads of a meeting."""

    def __init__(self, rank: int, size: int, meeting: Meeting):
        self.rank, self.size = rank, size
        self._ranks = ThreadRanks(rank, size, True, meeting)

    def all_rows(self, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(Linked.apply(part, self._to_heads, self._to_rows) for part in parts)

    def own_rows(self, x: torch.Tensor) -> torch.Tensor:
        return Linked.apply(x, self._to_rows, self._to_heads)

    def _to_heads(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._ranks.exchange(x)).chunk(self.size, 1)[self.rank]

    def _to_rows(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._ranks.exchange(x), 1).chunk(self.size)[self.rank]


class Linked(torch.autograd.Function):
    """A function and what becomes of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: Callable, back: Callable) -> torch.Tensor:
        ctx.back = back
        return there(x).clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        return ctx.back(grad).clone(), None, None


def on_tensor_ranks(size: int, sequence: bool, action: Callable[[ThreadRanks], Any]) -> list[Any]:
    """What `action` returns on each rank; what it raises on one is raised here."""
    meeting, results, failures = Meeting(size), [None] * size, []

    def run(rank: int) -> None:
        try:
            results[rank] = action(ThreadRanks(rank, size, sequence, meeting))
        except Exception as error:
            failures.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in sorted(failures, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise failure
    return results
