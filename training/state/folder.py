"""What lies in RUN_DIR/checkpoints: names, which is the latest, what retention gives up, and who is reading.

step-00000020/ ...  complete checkpoints        .tmp-*   half-written or given up; swept by the next save
latest              names the one to go on from
"""

import contextlib
import fcntl
import logging
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from common.files import discard, open_descriptor, write_whole
from common.mistakes import Mistake
from training.lock import WITHOUT_LOCKS

LOG = logging.getLogger("training.state.folder")

LATEST, DAMAGED, READERS = "latest", "damaged.txt", "readers"
REPLACED = ".tmp-old-"
"""Names of complete checkpoints that were replaced or given up begin so; somebody may still be reading them."""
KEPT = "before-upgrade"
"""What the name of an old checkpoint begins with once it has been converted (see legacy.py)."""
_NAME = re.compile(r"step-(\d{8,})")


def checkpoints_dir(run_dir: Path) -> Path:
    """Folder of a run's checkpoints."""
    return run_dir / "checkpoints"


def step_name(step: int) -> str:
    """Name of the checkpoint of a step."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Step of a checkpoint's folder, by its name."""
    match = _NAME.fullmatch(folder.name)
    assert match, f"{folder} is not the name of a checkpoint"
    return int(match[1])


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Folders of complete checkpoints, oldest step first; what was left half-written has another name.

    Raises ValueError where something else has the name of the folder they lie in.
    """
    home = checkpoints_dir(run_dir)
    if not home.is_dir():
        if home.exists() or home.is_symlink():
            raise Mistake(f"{home}: it is no folder, though checkpoints belong there; move it away")
        return []
    return sorted(filter(is_checkpoint, home.iterdir()), key=step_of)


def is_checkpoint(path: Path) -> bool:
    """Whether it is a folder that has the name of a complete checkpoint."""
    return _NAME.fullmatch(path.name) is not None and path.is_dir()


def named_latest(run_dir: Path) -> str | None:
    """What `latest` says; None where there is no such file."""
    pointer = checkpoints_dir(run_dir) / LATEST
    return pointer.read_text(errors="replace").strip() if pointer.is_file() else None


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint to go on from: the one `latest` names, else the newest complete one, else None."""
    folders, named = complete_checkpoints(run_dir), named_latest(run_dir)
    return next((folder for folder in folders if folder.name == named), folders[-1] if folders else None)


def went_back(run_dir: Path) -> bool:
    """Whether `latest` names an older checkpoint than the newest, as somebody has it who wants to go on from there."""
    folders = complete_checkpoints(run_dir)
    return bool(folders) and latest_checkpoint(run_dir) != folders[-1]


def half_upgraded(run_dir: Path) -> Path | None:
    """The old checkpoint that had given up its name when its upgrade was killed, before the new one took it."""
    named, home = named_latest(run_dir), checkpoints_dir(run_dir)
    if named is None or not _NAME.fullmatch(named) or (home / named).exists():
        return None
    kept = home / f"{KEPT}-{named}"
    return kept if kept.is_dir() else None


def name_aside(step: int, attempt: str) -> str:
    """A name, no other writer's, for the checkpoint of a step while it is written."""
    return f".tmp-{attempt or 'lone'}-{step_name(step)}-{secrets.token_hex(4)}"


def give_up(folder: Path) -> Path:
    """Takes its name from a complete checkpoint, so that a kill leaves nothing that looks complete; where it is now."""
    return folder.rename(folder.with_name(f"{REPLACED}{folder.name}-{secrets.token_hex(4)}"))


def point_to(folder: Path) -> None:
    """Makes `latest` name a checkpoint; a folder of that name, which no run makes, is moved out of the way."""
    pointer = folder.parent / LATEST
    if pointer.is_dir() and not pointer.is_symlink():
        moved = pointer.with_name(f"{LATEST}-{secrets.token_hex(4)}")
        pointer.rename(moved)
        LOG.warning(f"{pointer}: it was a folder, which is now called {moved.name}")
    write_whole(pointer, f"{folder.name}\n".encode())


def sweep(run_dir: Path) -> None:
    """Deletes what half-written and replaced checkpoints have left, and names what cannot be deleted yet."""
    with without_readers(run_dir) as free:
        for leftover in checkpoints_dir(run_dir).glob(".tmp-*"):
            if not free and leftover.name.startswith(REPLACED):
                continue
            if not discard(leftover):
                LOG.warning(f"{leftover}: some of it is in use and cannot be deleted yet")


def mark_damaged(folder: Path, faults: list[str]) -> None:
    """Leaves word in a damaged checkpoint, so that retention does not count it among the sound ones."""
    write_whole(folder / DAMAGED, ("\n".join(faults) + "\n").encode())


def unmark_damaged(folder: Path) -> None:
    """Takes that word back, for a checkpoint that was mended."""
    (folder / DAMAGED).unlink(missing_ok=True)


def superseded(folders: list[Path], keep: int, keep_every_steps: int | None) -> list[Path]:
    """Of checkpoints, those that retention gives up: what is older than the newest `keep` sound ones.

    Multiples of `keep_every_steps` stay, and so do all while there are fewer sound ones.
    """
    sound = sorted((path for path in folders if not (path / DAMAGED).exists()), key=step_of)
    if len(sound) < keep:
        return []
    oldest = step_of(sound[-keep])
    old = [path for path in sorted(folders, key=step_of) if step_of(path) < oldest]
    return [path for path in old if not (keep_every_steps and step_of(path) % keep_every_steps == 0)]


def delete_superseded(run_dir: Path, keep: int, keep_every_steps: int | None) -> list[Path]:
    """Deletes what retention gives up and returns it; a kill in the middle leaves nothing that looks complete.

    While somebody is reading a checkpoint of the run, all stay until a later save.
    """
    latest = latest_checkpoint(run_dir)
    gone = [path for path in superseded(complete_checkpoints(run_dir), keep, keep_every_steps) if path != latest]
    with without_readers(run_dir) as free:
        if not free:
            return []
        aside = [give_up(path) for path in gone]
    for path in aside:
        discard(path)
    return gone


@contextlib.contextmanager
def reading(run_dir: Path) -> Iterator[None]:
    """Keeps the run, which may be training, from deleting checkpoints while the block reads one."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # every save makes it first, so none is under way
            descriptor = open_descriptor(run_dir / READERS, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            _lock(run_dir / READERS, descriptor, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def without_readers(run_dir: Path) -> Iterator[bool]:
    """Whether nobody reads a checkpoint of the run; who wants to waits until the block ends."""
    descriptor = open_descriptor(run_dir / READERS, os.O_RDWR | os.O_CREAT)
    try:
        yield _lock(run_dir / READERS, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _lock(path: Path, descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        LOG.warning(f"{path}: this file system has no locks, so a checkpoint may be deleted while it is read")
    return True
