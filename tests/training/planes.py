"""Several ranks as threads of one process, joined by real connections."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from training.distributed import World
from training.mesh import Mesh
from training.plane import Plane


def in_threads(num_ranks: int, action: Callable[[World], Any], seconds: float = 60, **sizes: int) -> list[Any]:
    """What `action` returns on each rank; `sizes` are those of axes, an error of any rank is raised."""
    store = dist.HashStore()

    def run(rank: int) -> Any:
        plane = Plane.connect(rank, num_ranks, store, timedelta(seconds=seconds))
        mesh = Mesh.of(rank, num_ranks, **sizes)
        try:
            return action(World(mesh, plane, torch.device("cpu"), dist.PrefixStore("count", store)))
        finally:
            plane.close()

    with ThreadPoolExecutor(num_ranks) as threads:
        return [future.result() for future in [threads.submit(run, rank) for rank in range(num_ranks)]]
