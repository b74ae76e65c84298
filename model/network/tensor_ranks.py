"""How layers are cut between the ranks that share them (tensor parallelism, arXiv 1909.08053).

    rows of a matrix cut       each rank computes some of the outputs       heads, inner width, vocabulary
    columns of a matrix cut    each rank computes a part of every output    ... summed over the ranks

A layer says what is cut (`Division`) and calls `TensorRanks` where ranks must talk; who they are and how they do it is
none of its business. Without tensor ranks a layer is whole and calls nobody. With sequence parallelism (arXiv
2205.05198) what lies between cut layers, [T, M], is cut too: each rank has T / size consecutive rows of it.
"""

from typing import NamedTuple, Protocol

import torch


class Division(NamedTuple):
    """Which dim of a weight is cut; each of its sections is cut evenly, so that a rank has a part of each."""

    dim: int
    """The dim."""
    sections: tuple[int, ...]
    """Their lengths along it, such as those of queries, keys and values in one matrix."""

    def parts(self, rank: int, size: int) -> list[tuple[int, int]]:
        """First index and length along the dim of each of a rank's parts, in their order."""
        starts = [sum(self.sections[:number]) for number in range(len(self.sections))]
        lengths = [section // size for section in self.sections]
        return [(start + rank * length, length) for start, length in zip(starts, lengths, strict=True)]

    def of(self, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """A rank's part of a weight."""
        return torch.cat([whole.narrow(self.dim, *part) for part in self.parts(rank, size)], self.dim)

    def shape(self, whole: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Shape of a rank's part."""
        assert sum(self.sections) == whole[self.dim], f"{self} of {whole}"
        assert all(section % size == 0 for section in self.sections), f"{self} between {size} ranks"
        return (*whole[: self.dim], whole[self.dim] // size, *whole[self.dim + 1 :])


class TensorRanks(Protocol):
    """The ranks that hold parts of the same layers, as one of them sees them; all of them call the same in turn."""

    rank: int
    """This one, 0 .. size - 1."""
    size: int
    """How many."""
    sequence: bool
    """Whether what lies between cut layers is cut by rows."""

    def cut_rows(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """By rows: x [T, I], or this rank's rows of it, by a part of a matrix [O / size, I] -> [T, O / size]."""

    def summed(self, partial: torch.Tensor) -> torch.Tensor:
        """Partial sums [T, M] -> their sum over the ranks, or this rank's rows of it."""

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """All of x [T, M], of which this rank may have some rows, for what each rank uses in its own way."""

    def own_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Of x [T, ...] the rows that are this rank's, where there is sequence parallelism, else all; no gradient."""

    def shared(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight that all ranks hold, for use on what they have parts of: its gradients are summed over them."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of x over the ranks, without a gradient."""

    def max(self, x: torch.Tensor) -> torch.Tensor:
        """Largest of x over the ranks, element by element, without a gradient."""


def between_rows(ranks: TensorRanks | None) -> TensorRanks | None:
    """The ranks, where weights outside of cut layers see a part of the rows each; else None."""
    return ranks if ranks is not None and ranks.sequence else None
