"""Whether ranks that should hold the same numbers do: who differs from most, by messages of a fixed size.

    what a rank holds -> a hash -> the majority's, by Boyer and Moore's vote (1981) -> those that hold another

A bit that flips in memory or in an arithmetic unit stays unseen else: the rank trains on, and its share of every
gradient is wrong. Ranks that hold the same part of the model are compared, each such group by itself.
"""

import dataclasses
from collections.abc import Iterable

import torch
import xxhash

from training.distributed import World
from training.plane import node_name

CHUNK = 2**26
"""Bytes that are taken off a device at once."""
SHOWN = 8
"""Ranks that are named; a machine's worth."""


@dataclasses.dataclass(frozen=True)
class Vote:
    """What some ranks hold, as far as one candidate tells."""

    digest: int
    """What the majority of them holds, if there is one."""
    lead: int = 1
    """How far it is ahead of all others, at least."""
    unanimous: bool = True
    """Whether all hold it."""

    def __add__(self, other: "Vote") -> "Vote":
        if self.digest == other.digest:
            return Vote(self.digest, self.lead + other.lead, self.unanimous and other.unanimous)
        ahead, behind = (self, other) if self.lead >= other.lead else (other, self)
        return Vote(ahead.digest, ahead.lead - behind.lead, False)


@dataclasses.dataclass(frozen=True)
class Deviants:
    """Ranks that hold something else than most of those they are compared with."""

    count: int
    """How many; all of a group in which no half agrees."""
    named: tuple[tuple[int, str], ...]
    """The lowest of them, each with its node."""
    certain: bool
    """Whether each of them stands against a majority."""

    def __add__(self, other: "Deviants") -> "Deviants":
        named = tuple(sorted((*self.named, *other.named))[:SHOWN])
        return Deviants(self.count + other.count, named, self.certain and other.certain)

    @property
    def nodes(self) -> list[str]:
        """Nodes of those that are named."""
        return sorted({node for _, node in self.named})

    @property
    def blamed(self) -> list[str]:
        """Nodes that are known to be at fault."""
        return self.nodes if self.certain else []

    def __str__(self) -> str:
        ranks = ", ".join(f"{rank} on {node}" for rank, node in self.named)
        return ranks + (f" and {self.count - len(self.named)} more" if self.count > len(self.named) else "")


def digest_of(tensors: Iterable[torch.Tensor]) -> int:
    """xxh3_64 of the bytes of tensors on any device."""
    digest = xxhash.xxh3_64()
    for tensor in tensors:
        for part in tensor.detach().reshape(-1).view(torch.uint8).split(CHUNK):
            digest.update(part.cpu().numpy().data)
    return digest.intdigest()


def deviants(digest: int, world: World) -> Deviants | None:
    """Who holds another digest than most replicas; None when nobody does. All ranks call it together."""
    axes = world.mesh
    votes = world.plane.join({axes.tensor.rank: Vote(digest)}, _united)
    if all(vote.unanimous for vote in votes.values()):
        return None
    candidate = votes[axes.tensor.rank].digest
    counts = world.plane.join({axes.tensor.rank: int(digest == candidate)}, _united)
    has_majority = counts[axes.tensor.rank] * 2 > axes.replicas.size
    mine = Deviants(1, ((world.rank, node_name()),), has_majority)
    nobody = Deviants(0, (), True)
    return world.plane.join(nobody if digest == candidate and has_majority else mine, Deviants.__add__)


def _united(a: dict, b: dict) -> dict:
    """Sums by tensor rank."""
    return {key: a[key] + b[key] if key in a and key in b else a.get(key, b.get(key)) for key in a | b}
