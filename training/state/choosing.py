"""Which checkpoint to go on from: the newest one that is sound, the same on every rank.

    rank 0 lists and looks -> all are told -> the ranks check the files between them -> one verdict -> compared

No step depends on what one rank alone saw, so an error that only one rank meets is an error of all.
"""

import dataclasses
import errno
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path

import xxhash

from common.files import checksum, read_file
from common.mistakes import Mistake, shown
from training.distributed import World
from training.state.folder import (
    DAMAGED,
    LATEST,
    checkpoints_dir,
    complete_checkpoints,
    half_upgraded,
    latest_checkpoint,
    named_latest,
    step_of,
)
from training.state.identity import STATE, OtherFormat, RunIdentity, RunState, parse_state
from training.state.index import Index
from training.state.parts import part_bytes, part_name, patiently
from training.state.sums import CHECKSUMS, check_complete, parse_sums
from training.state.together import everywhere, on_main

INDEX = "index.json"
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
"""What a file system answers where a file is not what was written: damage, while other answers say nothing of it."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A sound checkpoint, before its tensors are read."""

    folder: Path
    """Its folder."""
    state: RunState
    """Where the run stood."""
    identity: RunIdentity
    """What it was made by."""
    index: Index
    """What its parts hold."""
    unlisted: tuple[str, ...]
    """Files that lie beside its own and are not read."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Where to resume from."""

    checkpoint: Checkpoint | None
    """A sound one; None for a run that has none yet."""
    damaged: dict[str, list[str]]
    """Newer ones that were passed over, by name, and why; `latest` where it names one that is gone."""

    @property
    def folder(self) -> Path | None:
        """Folder of the one that was chosen."""
        return self.checkpoint.folder if self.checkpoint else None


class NothingSound(Mistake):
    """There are checkpoints, and every one is damaged or gone."""


def choose(run_dir: Path, world: World) -> Choice:
    """The newest sound checkpoint, beginning with `latest`; all ranks call it together.

    Raises NothingSound when there are checkpoints and none is sound, and OtherFormat when one is of another format.
    """
    candidates, damaged = on_main(world, lambda: patiently(lambda: (_candidates(run_dir), _gone(run_dir))))
    for folder in candidates:
        found = examine(folder, world)
        if isinstance(found, Checkpoint):
            return _agreed(Choice(found, damaged), world)
        damaged[folder.name] = found
    if not damaged:
        return _agreed(Choice(None, {}), world)
    names = "; ".join(f"{name}: {faults[0]}" for name, faults in damaged.items())
    raise NothingSound(
        f"{checkpoints_dir(run_dir)}: every checkpoint is damaged ({names}); "
        "restore one from a copy, or delete the folder to train from the beginning"
    )


def examine(folder: Path, world: World) -> Checkpoint | list[str]:
    """A checkpoint, or what is wrong with it; all ranks call it together and check its files between them.

    Raises OtherFormat for one that this version does not read, and OSError where the file system gives no answer.
    """
    fault, contents, unlisted = on_main(world, lambda: _look(folder))
    if fault:
        return [fault]
    saved = parse_state(contents[STATE], folder)
    index, digests = Index.loads(contents[INDEX]), parse_sums(contents[CHECKSUMS])
    parts = range(world.rank, index.num_parts, world.size)
    faults = everywhere(world, lambda: [fault for part in parts for fault in _faults(folder, index, part, digests)])
    if world.max([len(faults)])[0]:
        found = world.gather_to_main(faults)
        return world.from_main(sorted(itertools.chain(*found)) if found else None)
    return Checkpoint(folder, saved.state, saved.identity, index, unlisted)


def read_index(folder: Path) -> Index:
    """The index of a checkpoint that was found sound."""
    return Index.loads(patiently(lambda: read_file(folder / INDEX)))


def small_files_of(folder: Path) -> dict[str, bytes] | None:
    """Contents of the small files of a checkpoint; None where they are not there or not sound."""
    fault, contents, _ = _look(folder)
    return None if fault else contents


def _candidates(run_dir: Path) -> list[Path]:
    if kept := half_upgraded(run_dir):
        raise Mistake(
            f"{kept}: the upgrade of this checkpoint did not come to its end; "
            f"do it again with 'shardline checkpoint upgrade {run_dir} --trust'"
        )
    latest = latest_checkpoint(run_dir)
    return [path for path in reversed(complete_checkpoints(run_dir)) if latest and step_of(path) <= step_of(latest)]


def _gone(run_dir: Path) -> dict[str, list[str]]:
    """What is wrong with `latest` where it names a checkpoint that is not there."""
    named = named_latest(run_dir)
    if named is None or any(path.name == named for path in complete_checkpoints(run_dir)):
        return {}
    return {LATEST: [f"it names {shown(named)}, which is not there"]}


def _agreed(choice: Choice, world: World) -> Choice:
    step = step_of(choice.folder) if choice.folder else -1
    highest, lowest = world.max([step, -step])
    if highest != -lowest:
        raise RuntimeError(f"ranks would go on from different checkpoints, of steps {-lowest:.0f} to {highest:.0f}")
    return choice


def _look(folder: Path) -> tuple[str, dict[str, bytes], tuple[str, ...]]:
    """What is wrong with the small files of a checkpoint, their contents, and names of files that it does not list."""
    contents: dict[str, bytes] = {}
    try:
        for name in (CHECKSUMS, STATE, INDEX):
            contents[name] = patiently(functools.partial(read_file, folder / name))
    except OSError as error:
        if error.errno not in GONE:
            raise
        _refuse_other_format(contents, folder)
        return f"{name} cannot be read ({error.strerror})", {}, ()
    try:
        digests = parse_sums(contents[CHECKSUMS])
    except ValueError as error:
        _refuse_other_format(contents, folder)
        return f"{CHECKSUMS} cannot be read ({error})", {}, ()
    for name in (STATE, INDEX):
        if xxhash.xxh3_128_hexdigest(contents[name]) != digests.get(name):
            return _other_checksum(name), {}, ()
    try:
        parse_state(contents[STATE], folder)
        num_parts = Index.loads(contents[INDEX]).num_parts
        if num_parts != len(digests) - 2:
            raise ValueError(f"{INDEX} has {num_parts} parts and {CHECKSUMS} {len(digests) - 2}")
        check_complete(digests, [STATE, INDEX, *map(part_name, range(num_parts))])
    except OtherFormat:
        raise
    except ValueError as error:
        return f"{CHECKSUMS} or {INDEX} is not that of a checkpoint ({error})", {}, ()
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    return "", contents, tuple(name for name in found if name not in {*digests, CHECKSUMS, DAMAGED})


def _refuse_other_format(contents: dict[str, bytes], folder: Path) -> None:
    """Raises OtherFormat for a checkpoint whose list of files is not of our form because all of it is not."""
    try:
        parse_state(contents.get(STATE, b""), folder)
    except OtherFormat:
        raise
    except ValueError:
        return


def _faults(folder: Path, index: Index, part: int, digests: Mapping[str, str]) -> list[str]:
    path = folder / part_name(part)
    try:
        if patiently(lambda: checksum(path)) != digests[path.name]:
            return [_other_checksum(path.name)]
        size, needed = path.stat().st_size, part_bytes(index, part)
        return [] if size == needed else [f"{path.name} has {size} bytes, where {INDEX} says {needed}"]
    except OSError as error:
        if error.errno not in GONE:
            raise
        return [f"{path.name} cannot be read ({error.strerror})"]


def _other_checksum(name: str) -> str:
    return f"{name} has another checksum than when it was written"
