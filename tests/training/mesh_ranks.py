"""Ranks that talk along each axis: python -m tests.training.mesh_ranks OUTPUT_DIR"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from training.distributed import connect, disconnect
from training.mesh import AXES, Mesh


def main(output: Path) -> None:
    """Writes the sum of global ranks along each axis, as this rank hears it."""
    world = connect(timedelta(minutes=2))
    mesh = Mesh.of(world.rank, world.size, tensor=2).with_groups()
    heard = {}
    for name in AXES:
        axis = getattr(mesh, name)
        total = torch.tensor(world.rank)
        if axis.size > 1:
            dist.all_reduce(total, group=axis.group)
        heard[name] = [int(total), sum(axis.members)]
    (output / f"{world.rank}.json").write_text(json.dumps(heard))
    world.plane.barrier()
    disconnect(world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
