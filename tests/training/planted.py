"""Ways to add gradients up wrongly, to see that a comparison finds them."""

import torch

from training.verify.plain import Sum


class LastTwice(Sum):
    """The last micro-batch counts twice."""

    def of(self, gradients):
        return super().of([[*of_rank, of_rank[-1]] for of_rank in gradients])


class LastLeaks(Sum):
    """The last micro-batch of a rank stays and is added to the next step."""

    def __init__(self):
        self.left: dict[torch.Size, torch.Tensor] = {}

    def of(self, gradients):
        (*_, last), shape = gradients[0], gradients[0][0].shape
        stale = self.left.get(shape, torch.zeros_like(last))
        self.left[shape] = last / 100
        return super().of([[*gradients[0], stale], gradients[1]])


class NormOfAPart(Sum):
    """Every rank's part of the norm is counted twice."""

    def norm(self, gradients):
        return super().norm(gradients) * 2**0.5


class Narrow(Sum):
    """Micro-batches are added up in bf16."""

    dtype = torch.bfloat16


class LastDropped(Sum):
    """The last micro-batch does not count."""

    def of(self, gradients):
        return super().of([of_rank[:-1] for of_rank in gradients])


class OneRankAlone(Sum):
    """Ranks keep their own gradients: nothing crosses between them."""

    def of(self, gradients):
        return super().of(gradients[:1])
