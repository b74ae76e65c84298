"""How many ranks write to a file system at once: a server of NFS that hundreds write to serves none of them well.

Ranks take turns: in turn 0 those whose number is a multiple of the number of turns, and so on, so that the ranks of a
turn are spread over the nodes. A turn ends when all of it have written, by one exchange over the plane.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from common.mounts import file_system_of
from training.distributed import World
from training.state.together import everywhere, on_main

T = TypeVar("T")
ON_NFS = 32
"""Ranks that write at once where nothing else is said and the file system is NFS."""


def in_turns(world: World, folder: Path, most: int | None, action: Callable[[], T]) -> T:
    """What `action`, which writes to `folder`, returns on this rank; at most `most` ranks are at it at once.

    With None all are, or ON_NFS of them on NFS. An error on any rank is raised on every rank, and no later turn begins.
    """
    limit = on_main(world, lambda: most or _limit_of(folder))
    num_turns = -(-world.size // limit) if limit else 1
    results: list[T] = []

    def take(turn: int) -> None:
        if world.rank % num_turns == turn:
            results.append(action())

    for turn in range(num_turns):
        everywhere(world, functools.partial(take, turn))
    return results[0]


def _limit_of(folder: Path) -> int | None:
    return ON_NFS if file_system_of(str(folder.resolve())).startswith("nfs") else None
