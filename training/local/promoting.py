"""At start: a local checkpoint that is whole between the nodes, and newer than the shared ones, becomes a shared one.

    steps of all nodes, newest first -> whose small files -> who has which part, sound -> all of them? -> written

Nodes hold parts of their own ranks and copies of another's, so what one lost node held is still there once. Messages
are as long as the list of parts, whatever the number of ranks and steps.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.files import HashingWriter, checksum, discard
from training.distributed import World
from training.local.folder import LocalFolder
from training.local.partners import pieces_from
from training.state.choosing import INDEX, small_files_of
from training.state.folder import checkpoints_dir, point_to, step_name, step_of
from training.state.identity import STATE, RunState, parse_state
from training.state.index import Index
from training.state.parts import part_name
from training.state.saving import make_room, put_in_place, write_small_files
from training.state.sums import CHECKSUMS, parse_sums
from training.state.together import everywhere, on_main

LOG = logging.getLogger("training.local.promoting")
MOST_STEPS = 8
"""Steps that are looked at: those of two nodes that were never in one job together."""
NOBODY = np.iinfo(np.int32).max
"""Rank that holds a part which is nowhere."""


@dataclasses.dataclass(frozen=True)
class Whole:
    """A local checkpoint all of whose parts are sound on some node."""

    step: int
    contents: dict[str, bytes]
    """Of its small files."""
    holders: np.ndarray
    """int32 [parts]: the lowest rank that can read each."""


def promote(
    local: LocalFolder, run_dir: Path, world: World, newest_shared: int, is_given_up: Callable[[RunState], bool]
) -> tuple[int, float] | None:
    """Makes the newest whole local checkpoint a shared one, if it is newer; all ranks call it together.

    One that `is_given_up` is passed over. Returns the step and the seconds it took, None where there is none.
    """
    started = time.perf_counter()
    mine = everywhere(world, lambda: [step_of(path) for path in local.checkpoints() if step_of(path) > newest_shared])
    for step in world.plane.join(sorted(mine, reverse=True)[:MOST_STEPS], _newest):
        found = _whole(local.path / step_name(step), local, world)
        if found is not None and not is_given_up(parse_state(found.contents[STATE], local.path).state):
            _write(found, local, run_dir, world)
            return step, time.perf_counter() - started
    return None


def _newest(a: list[int], b: list[int]) -> list[int]:
    return sorted({*a, *b}, reverse=True)[:MOST_STEPS]


def _whole(folder: Path, local: LocalFolder, world: World) -> Whole | None:
    contents = world.plane.join(everywhere(world, lambda: small_files_of(folder)), _chosen)
    if contents is None:
        return None
    digests, num_parts = parse_sums(contents[CHECKSUMS]), Index.loads(contents[INDEX]).num_parts
    shares = range(world.rank % local.nodes.ranks_each, num_parts, local.nodes.ranks_each)
    sound = everywhere(world, lambda: [part for part in shares if _is_sound(folder, part, digests)])
    mine = np.full(num_parts, NOBODY, np.int32)
    mine[sound] = world.rank
    holders = world.plane.join(mine, np.minimum)
    return None if (holders == NOBODY).any() else Whole(step_of(folder), contents, holders)


def _chosen(a: dict[str, bytes] | None, b: dict[str, bytes] | None) -> dict[str, bytes] | None:
    """The small files of one of two nodes; where they differ, always of the same."""
    return max(filter(None, (a, b)), key=lambda contents: contents[CHECKSUMS], default=None)


def _is_sound(folder: Path, part: int, digests: dict[str, str]) -> bool:
    path = folder / part_name(part)
    try:
        return path.is_file() and checksum(path) == digests[path.name]
    except OSError as error:  # a disk that fails; the copy is elsewhere
        LOG.warning(f"{path}: {error.strerror}")
        return False


def _write(found: Whole, local: LocalFolder, run_dir: Path, world: World) -> None:
    """Writes it by the protocol of any other checkpoint."""
    aside: Path | None = None
    source, digests = local.path / step_name(found.step), parse_sums(found.contents[CHECKSUMS])
    mine = [part_name(int(part)) for part in np.flatnonzero(found.holders == world.rank)]
    try:
        aside = on_main(world, lambda: make_room(run_dir, found.step, world.attempt))
        everywhere(world, lambda: _copy(mine, source, aside, digests))
        on_main(world, lambda: _complete(aside, found, run_dir, world.attempt))
    finally:
        if aside is not None and world.is_main:
            discard(aside)


def _copy(names: list[str], source: Path, aside: Path, digests: dict[str, str]) -> None:
    for name in names:
        with HashingWriter(aside / name) as file:
            for piece in pieces_from(source / name):
                file.write(piece)
        if file.digest != digests[name]:
            raise RuntimeError(f"{source / name}: it changed while it was copied")


def _complete(aside: Path, found: Whole, run_dir: Path, attempt: str) -> None:
    write_small_files(aside, found.contents)
    final = checkpoints_dir(run_dir) / step_name(found.step)
    put_in_place(aside, final, attempt)
    point_to(final)
