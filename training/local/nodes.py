"""Which ranks share a node, and which rank of another node keeps a copy of what a rank writes."""

import dataclasses

from common.mistakes import Mistake
from training.distributed import World


@dataclasses.dataclass(frozen=True)
class Nodes:
    """The nodes of a run, each with as many ranks, numbered node by node."""

    num_ranks: int
    """Of all nodes."""
    ranks_each: int
    """Of one."""

    @classmethod
    def of(cls, world: World) -> "Nodes":
        """Those of a world; all ranks call it together. Mistake where ranks lie otherwise."""
        (most,) = world.max([world.local_rank])
        each = int(most) + 1
        (otherwise,) = world.max([world.size % each or world.rank % each != world.local_rank])
        if otherwise:
            raise Mistake(
                f"checkpoint.local_interval_steps: {world.size} ranks do not lie {each} to a node, one node after "
                "another; start as many on each node, in order, or remove this key and local_dir"
            )
        return cls(world.size, each)

    @property
    def num(self) -> int:
        """How many there are."""
        return self.num_ranks // self.ranks_each

    def keeper_of(self, rank: int) -> int:
        """The rank that keeps a copy of what `rank` writes: that of the next node with the same place there."""
        return (rank + self.ranks_each) % self.num_ranks

    def kept_by(self, rank: int) -> int:
        """The rank of whose part `rank` keeps a copy."""
        return (rank - self.ranks_each) % self.num_ranks
