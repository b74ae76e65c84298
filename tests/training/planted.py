"""Ways to add gradients up wrongly, and to go the wrong way with Muon, to see that a comparison finds them."""

import torch

from training.verify.plain import Sum
from training.verify.plain_muon import Direction


class LastTwice(Sum):
    """The last micro-batch counts twice."""

    def of_rank(self, gradients, rank):
        return super().of_rank([*gradients, gradients[-1]], rank)


class LastLeaks(Sum):
    """The last micro-batch of a rank stays and is added to the next step."""

    def __init__(self):
        self.left: dict[torch.Size, torch.Tensor] = {}

    def of_rank(self, gradients, rank):
        if rank:
            return super().of_rank(gradients, rank)
        last = gradients[-1]
        stale = self.left.get(last.shape, torch.zeros_like(last))
        self.left[last.shape] = last / 100
        return super().of_rank([*gradients, stale], rank)


class NormOfAPart(Sum):
    """Every rank's part of the norm is counted twice."""

    def norm(self, gradients):
        return super().norm(gradients) * 2**0.5


class Narrow(Sum):
    """Micro-batches are added up in bf16."""

    dtype = torch.bfloat16


class LastDropped(Sum):
    """The last micro-batch does not count."""

    def of_rank(self, gradients, rank):
        return super().of_rank(gradients[:-1], rank)


class OneRankAlone(Sum):
    """Ranks keep their own gradients: nothing crosses between the two."""

    def of_rank(self, gradients, rank):
        return super().of_rank(gradients, rank) * (0 if rank else 2)


class NotOrthogonal(Direction):
    """A matrix is scaled as if it were orthogonalised, and is not."""

    def orthogonal(self, matrix):
        return matrix / matrix.norm() * min(matrix.shape) ** 0.5


class WithPadding(Direction):
    """A matrix is orthogonalised together with what lies behind it in its vector."""

    def orthogonal(self, matrix):
        return super().orthogonal(torch.cat([matrix, matrix[:8].flip(1)]))[: len(matrix)]


class AllInOne(Direction):
    """Queries, keys and values are orthogonalised as one matrix, so are gate and up."""

    def of_tensor(self, momentum, division):
        return super().of_tensor(momentum, division._replace(sections=(sum(division.sections),)))


class PartsOfRanks(Direction):
    """Every rank orthogonalises its own part of a matrix."""

    def orthogonal(self, matrix):
        return torch.cat([super(PartsOfRanks, self).orthogonal(part) for part in matrix.chunk(2)])
