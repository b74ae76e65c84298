"""What is added to attention scores by distance: T5's learned bias and ALiBi's fixed one.

A distance is the place of the key minus the place of the query, both in their document; where a document has fewer
queries than keys, its queries stand at its end.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True, eq=False)
class RelativeBias:
    """A learned number per head and bucket of distances (T5, arXiv 1910.10683, section 2.1)."""

    weight: torch.Tensor
    """[num_buckets, H]."""
    bidirectional: bool
    """Whether keys after the query have buckets of their own, half of them; else all share the bucket of distance 0."""
    max_distance: int
    """Distance in tokens from which on all share one bucket."""

    def values(self, distances: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> [H, ...], differentiable in the weight."""
        buckets = relative_buckets(distances, self.bidirectional, self.weight.shape[0], self.max_distance)
        return F.embedding(buckets, self.weight).movedim(-1, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Alibi:
    """A penalty that grows with the distance, at a rate per head (arXiv 2108.12409); after the query as before it."""

    slopes: torch.Tensor
    """float32 [H], see `alibi_slopes`; not learned."""

    def values(self, distances: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> [H, ...]."""
        return -self.slopes.view(-1, *[1] * distances.dim()) * distances.abs()


AttentionBias = RelativeBias | Alibi


def relative_buckets(distances: torch.Tensor, bidirectional: bool, num_buckets: int, max_distance: int) -> torch.Tensor:
    """T5's bucket of each distance: one each for the near half, then ever wider ones up to max_distance.

    int64 [...] -> int64 [...] in 0 ... num_buckets - 1; the last, wide buckets are found in fp32 as T5's code does.
    """
    if bidirectional:
        num_buckets //= 2
        first, distances = (distances > 0) * num_buckets, distances.abs()
    else:
        first, distances = torch.zeros_like(distances), (-distances).clamp(min=0)
    num_exact = num_buckets // 2
    growth = torch.log(distances.float() / num_exact) / math.log(max_distance / num_exact)
    # Distances below num_exact, the logarithm of 0 among them, are not looked up here.
    wide = num_exact + (growth.clamp(0, 1) * (num_buckets - num_exact)).long()
    return first + torch.where(distances < num_exact, distances, wide.clamp(max=num_buckets - 1))


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """The paper's slopes, float32 [H]: 2^(-8/n), 2^(-16/n) ... for the largest power of two n among the heads.

    Heads beyond it take every other slope of 2n heads, as the paper's code does.
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(num_heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)
