"""Writing a checkpoint, in two halves: steps wait for the first only (behind.py has the second in a thread).

engine.snapshot() -> copies on the host -> commit(): part files, index, state, checksums -> renamed -> `latest`

.tmp-ATTEMPT-step-00000020-TOKEN/   written aside, every file synced, `checksums.json` when all of them are
  -> step-00000020/  by renaming    -> `latest` names it
"""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from common.files import discard, sync_folder, write_whole
from training import fence
from training.distributed import World
from training.state.choosing import INDEX
from training.state.folder import checkpoints_dir, give_up, name_aside, point_to, step_name, sweep, without_readers
from training.state.identity import STATE, RunIdentity, RunState, dump_state
from training.state.index import Index, index_of
from training.state.parts import part_name, write_part
from training.state.snapshot import Snapshot
from training.state.sums import CHECKSUMS, dump_sums
from training.state.together import on_main
from training.state.writers import in_turns

if TYPE_CHECKING:
    from training.engine import Engine


def save(engine: "Engine", run_dir: Path, state: RunState, identity: RunIdentity, world: World) -> Path:
    """Both halves, one after the other; see `commit`."""
    return commit(engine.snapshot(), run_dir, state, identity, world)


def commit(
    snapshot: Snapshot,
    run_dir: Path,
    state: RunState,
    identity: RunIdentity,
    world: World,
    writers: int | None = None,
) -> Path:
    """Writes a checkpoint and returns its folder; all ranks call it together, and at most `writers` write at once.

    Raises OSError on every rank when one could not write: nothing half-written is left, and the checkpoints from
    before stay as they are. Raises Superseded when another start of the run has taken it over.
    """
    aside: Path | None = None
    try:
        aside = on_main(world, lambda: make_room(run_dir, state.step, world.attempt))
        name = part_name(world.mesh.part)
        kinds = {kind: [part] for kind, part in snapshot.kinds.items()}
        digest = in_turns(world, aside, writers, lambda: write_part(aside / name, kinds))
        digests = dict(world.gather_to_main((name, digest)) or ())
        return on_main(world, lambda: _complete(aside, digests, snapshot, state, identity, world.attempt))
    except OSError as error:
        home = checkpoints_dir(run_dir)
        reason = f"the checkpoint could not be written ({error.strerror}); the ones before it are untouched"
        raise OSError(error.errno, f"{home}: {reason}") from error
    finally:
        if aside is not None and world.is_main:
            discard(aside)


def make_room(run_dir: Path, step: int, attempt: str) -> Path:
    """A new folder to write the checkpoint of a step aside."""
    fence.check(run_dir, attempt)
    home = checkpoints_dir(run_dir)
    home.mkdir(parents=True, exist_ok=True)
    sweep(run_dir)
    aside = home / name_aside(step, attempt)
    aside.mkdir()
    return aside


def _complete(
    aside: Path, digests: dict[str, str], snapshot: Snapshot, state: RunState, identity: RunIdentity, attempt: str
) -> Path:
    final = aside.with_name(step_name(state.step))
    seal(aside, digests, index_for(snapshot, len(digests)), dump_state(state, identity))
    put_in_place(aside, final, attempt)
    point_to(final)
    return final


def index_for(snapshot: Snapshot, num_parts: int) -> Index:
    """What so many parts hold of which a snapshot is one."""
    first, *others = snapshot.layouts
    return index_of(first, list(snapshot.kinds), snapshot.updates, num_parts // len(snapshot.layouts), *others)


def seal(aside: Path, parts: Mapping[str, str], index: Index, state: bytes) -> None:
    """Adds the small files to the parts of a checkpoint, given their digests by name."""
    write_small_files(aside, small_files(parts, index, state))


def small_files(parts: Mapping[str, str], index: Index, state: bytes) -> dict[str, bytes]:
    """Contents of the files beside the parts of a checkpoint, given their digests by name; the list of all is last."""
    contents = {INDEX: index.dumps(), STATE: state}
    sums = {**parts, **{name: xxhash.xxh3_128_hexdigest(content) for name, content in contents.items()}}
    return contents | {CHECKSUMS: dump_sums(sums)}


def write_small_files(aside: Path, contents: Mapping[str, bytes]) -> None:
    """Adds them in their order."""
    for name, content in contents.items():
        write_whole(aside / name, content)


def put_in_place(aside: Path, final: Path, attempt: str) -> None:
    """Gives a complete checkpoint its name; a rename that comes after another start of the run finds nothing."""
    run_dir = final.parent.parent
    # Later attempts move `aside` away when they begin, so this rename succeeds before they look or not at all.
    fence.check(run_dir, attempt)
    try:
        aside.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        replaced = give_up(final)  # a run that went back to an older checkpoint comes by here again, or it is a file
        aside.rename(final)
        with without_readers(run_dir) as free:
            if free:
                discard(replaced)
    sync_folder(final.parent)
    fence.check(run_dir, attempt)
