"""How rows are cut between the ranks that share them (context parallelism by heads, arXiv 2309.14509).

Each rank has T / size consecutive tokens of a micro-batch, whole layers, and in attention all tokens of some heads: so
a kernel sees whole documents, and every pattern is as exact as on one rank. Ranks that share rows talk to each other in
attention alone.
"""

from typing import Protocol

import torch


class ContextRanks(Protocol):
    """The ranks that share rows, as one of them sees them; all of them call the same in turn."""

    rank: int
    """This one, 0 .. size - 1."""
    size: int
    """How many."""

    def all_rows(self, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors [T / size, H, D] of this rank's rows -> [T, H / size, D] of its heads; H may differ between them."""

    def own_rows(self, x: torch.Tensor) -> torch.Tensor:
        """[T, H / size, D] of this rank's heads -> [T / size, H, D] of its rows."""


def rows_of(x: torch.Tensor, ranks: ContextRanks | None) -> torch.Tensor:
    """Rows of x [T, ...], which all ranks have, that are this rank's."""
    return x if ranks is None else x.chunk(ranks.size)[ranks.rank]
