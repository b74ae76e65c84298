"""What a rank writes into a checkpoint, copied aside on the host so that training may go on meanwhile."""

import dataclasses

import torch

from training.state.layout import Layout


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a rank will write, in memory that no step touches."""

    kinds: dict[str, torch.Tensor]
    """fp32 elements on the host by kind of state, those of padding left out."""
    layouts: tuple[Layout, ...]
    """How the ranks of each tensor rank share the state."""
    updates: int
    """Steps that the optimizer has done."""


class HostCopies:
    """Memory on the host for one snapshot after another: asked for once, for page-locking it takes seconds."""

    def __init__(self, *, pinned: bool):
        """`pinned` is page-locked, which a GPU copies into at its full speed."""
        self._pinned = pinned
        self._kept: dict[str, torch.Tensor] = {}

    def of(self, kind: str, size: int) -> torch.Tensor:
        """Memory for so many fp32 elements of a kind of state; what lies there is of the last snapshot."""
        kept = self._kept.get(kind)
        if kept is None or kept.numel() != size:
            if kept is not None and self._pinned:
                _unpin(kept)
            kept = self._kept[kind] = torch.empty(size, dtype=torch.float32)
            if self._pinned:
                _pin(kept)
        return kept


def _pin(memory: torch.Tensor) -> None:
    """Page-locks memory where it lies; torch's own page-locked memory has sizes of powers of two, up to twice as much.

    Raises RuntimeError where the system does not allow so much.
    """
    if memory.numel():
        portable = 1
        error = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, portable)
        torch.cuda.check_error(int(error))


def _unpin(memory: torch.Tensor) -> None:
    if memory.numel():
        torch.cuda.check_error(int(torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())))
