"""Checkpoints that are whole or do not count.

    .tmp-ATTEMPT-step-00000020/
                         state.json       where the run stands and what it is made of
                         rng-00000.pt     random states of each rank
                         deepspeed/       DeepSpeed's shards of weights and optimizer
                         checksums.json   xxh3_128 of every file above, written when all of them are on the disk
      -> step-00000020/  by renaming      -> `latest` names it  -> older ones are deleted

A run resumes from the one `latest` names, at the same ZeRO stage and number of ranks bit for bit, at others with the
same state cut anew. If that one is damaged, an older one serves and events say so; if all are, the run refuses to
start over in silence.
"""

import dataclasses
import errno
import functools
import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.files import HashingWriter, checksum, sync_folder, write_whole
from common.mistakes import Mistake
from data_pipeline.manifest import comparable
from training import fence
from training.distributed import World

if TYPE_CHECKING:
    from training.engine import Engine

STATE, CHECKSUMS, LATEST = "state.json", "checksums.json", "latest"
_NAME = re.compile(r"step-(\d{8,})")


@dataclasses.dataclass(frozen=True)
class RunState:
    """Where a run stands: together with the checkpoint's tensors all that resuming needs."""

    step: int = 0
    """Optimizer steps done."""
    samples_consumed: int = 0
    """Samples trained on, over all ranks: the whole state of the data."""
    tokens_consumed: int = 0
    """Tokens trained on, padding left out."""


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint was made by; all but how it is cut (see `CUT`) must be the same when resuming."""

    world_size: int
    """Number of ranks the shards were written by."""
    zero_stage: int
    """ZeRO stage of the shards."""
    precision: str
    """fp32 or bf16."""
    data: dict[str, str] | str
    """Fingerprints of the dataset by what they cover; in old checkpoints one string, that of its training tokens."""
    tokenizer: str
    """Fingerprint of the vocabulary."""
    order: dict[str, Any]
    """What decides which tokens a sample holds and which sample comes when: seed, sequence_length, objective."""
    model: dict[str, Any]
    """Keys of the model's config that decide its weights."""


CUT = ("world_size", "zero_stage")
"""Fields of `RunIdentity` that may differ when resuming: the state is the same, only cut otherwise."""

_REMEDIES = {
    "precision": "set training.precision back, or start a new run",
    "data": "point data.path to the dataset the run began with, or start a new run",
    "tokenizer": "use the tokenizer the run began with, or start a new run",
    "order": "set seed, training.sequence_length and objective back, or start a new run",
    "model": "set the model section back, or start a new run",
}


def checkpoints_dir(run_dir: Path) -> Path:
    """Folder of a run's checkpoints."""
    return run_dir / "checkpoints"


def step_of(folder: Path) -> int:
    """Step of a checkpoint's folder, by its name."""
    match = _NAME.fullmatch(folder.name)
    assert match, f"{folder} is not the name of a checkpoint"
    return int(match[1])


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Folders of complete checkpoints, oldest step first; what was left half-written has another name."""
    if not checkpoints_dir(run_dir).is_dir():
        return []
    folders = [path for path in checkpoints_dir(run_dir).iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=step_of)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint to go on from: the one `latest` names, else the newest complete one, else None."""
    folders = complete_checkpoints(run_dir)
    pointer = checkpoints_dir(run_dir) / LATEST
    if pointer.is_file():
        named = checkpoints_dir(run_dir) / pointer.read_text(errors="replace").strip()
        if named in folders:
            return named
    return folders[-1] if folders else None


def read_state(folder: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint. ValueError when it is missing or broken."""
    try:
        state = json.loads((folder / STATE).read_bytes())
        RunState(**state["state"])
        RunIdentity(**state["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Mistake(f"{folder / STATE}: cannot be read ({error}); delete this checkpoint") from None
    return state


def read_identity(folder: Path) -> RunIdentity:
    """What a checkpoint was made by. ValueError when `state.json` is missing or broken."""
    return RunIdentity(**read_state(folder)["identity"])


def damage(folder: Path, world: World) -> list[str]:
    """What is wrong with a checkpoint, empty if nothing; the ranks check its files between them."""
    try:
        expected: dict[str, str] = json.loads((folder / CHECKSUMS).read_bytes())
        files = sorted(expected.items())
    except (OSError, ValueError, AttributeError) as error:
        return [f"{CHECKSUMS} cannot be read ({error})"]
    faults = []
    for name, digest in files[world.rank :: world.size]:
        try:
            if checksum(folder / name) != digest:
                faults.append(f"{name} has another checksum than when it was written")
        except OSError as error:
            faults.append(f"{name} cannot be read ({error.strerror})")
    return sorted(fault for part in world.gather(faults) for fault in part)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Where to resume from."""

    folder: Path | None
    """A sound checkpoint; None for a run that has none yet."""
    damaged: dict[str, list[str]]
    """Newer ones that were passed over, by name, and why."""


def choose(run_dir: Path, world: World) -> Choice:
    """The newest sound checkpoint, beginning with `latest`; all ranks call it together.

    Raises ValueError when there are checkpoints and every one is damaged.
    """
    latest = world.from_main(latest_checkpoint(run_dir))
    if latest is None:
        return Choice(None, {})
    folders = world.from_main([path for path in complete_checkpoints(run_dir) if step_of(path) <= step_of(latest)])
    damaged: dict[str, list[str]] = {}
    for folder in reversed(folders):
        faults = damage(folder, world)
        if not faults:
            return Choice(folder, damaged)
        damaged[folder.name] = faults
    names = "; ".join(f"{name}: {faults[0]}" for name, faults in damaged.items())
    raise Mistake(
        f"{checkpoints_dir(run_dir)}: every checkpoint is damaged ({names}); "
        "restore one from a copy, or delete the folder to train from the beginning"
    )


def check_identity(folder: Path, now: RunIdentity) -> None:
    """ValueError when a checkpoint was made by a run that this one cannot go on with."""
    then = read_identity(folder)
    for field in dataclasses.fields(RunIdentity):
        old, new = getattr(then, field.name), getattr(now, field.name)
        if field.name == "data":
            old, new = comparable(old, new)
        if old == new or field.name in CUT:
            continue
        if isinstance(old, dict):
            key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
            was, is_now, name = old.get(key), new.get(key), f"{field.name}.{key}"
        else:
            was, is_now, name = old, new, field.name
        raise Mistake(
            f"{folder}: the checkpoint was made with {name} {was!r}, this run has {is_now!r}; {_REMEDIES[field.name]}"
        )


def save(engine: "Engine", run_dir: Path, state: RunState, identity: RunIdentity, world: World) -> Path:
    """Saves a checkpoint and returns its folder; all ranks call it together.

    Raises OSError on every rank when one could not write: nothing half-written is left, and the checkpoints from
    before stay as they are. Raises Superseded on rank 0 when another start of the run has taken it over.
    """
    if world.is_main:
        fence.check(run_dir, world.attempt)
    home = checkpoints_dir(run_dir)
    final = home / f"step-{state.step:08d}"
    aside = home / f".tmp-{world.attempt or 'lone'}-{final.name}"
    _together(world, aside, lambda: _make_room(home, aside) if world.is_main else {})
    sums, error = engine.save(aside)
    sums |= _together(world, aside, lambda: _save_random(aside, world.rank), error)
    merged = {name: digest for part in world.gather(sums) for name, digest in part.items()}
    facts = {
        "state": dataclasses.asdict(state),
        "identity": dataclasses.asdict(identity),
        "code": code_version() if world.is_main else "",
        "torch": torch.__version__,
    }
    _together(world, aside, lambda: _complete(aside, final, merged, facts, world.attempt) if world.is_main else {})
    return final


def _together(world: World, aside: Path, action: Any, error: OSError | None = None) -> dict[str, str]:
    """Does `action` on this rank unless `error` says that it failed before; a failure anywhere is raised everywhere."""
    result: dict[str, str] = {}
    if error is None:
        try:
            result = action()
        except OSError as failure:
            error = failure
    failures = [failure for failure in world.gather(error and (error.errno, error.strerror)) if failure]
    if failures:
        if world.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        number, reason = failures[0]
        raise OSError(
            number, f"{aside.parent}: the checkpoint could not be written ({reason}); the ones before it are untouched"
        )
    return result


def _make_room(home: Path, aside: Path) -> dict[str, str]:
    home.mkdir(parents=True, exist_ok=True)
    for leftover in home.glob(".tmp-*"):
        shutil.rmtree(leftover)
    aside.mkdir()
    return {}


def _complete(aside: Path, final: Path, sums: dict[str, str], facts: dict[str, Any], attempt: str) -> dict[str, str]:
    sums[STATE] = write_whole(aside / STATE, json.dumps(facts, indent=1).encode())
    write_whole(aside / CHECKSUMS, json.dumps(dict(sorted(sums.items())), indent=1).encode())
    for folder in [*(path for path in aside.rglob("*") if path.is_dir()), aside]:
        sync_folder(folder)
    # Later attempts move `aside` away when they begin, so this rename succeeds before they look or not at all.
    fence.check(final.parent.parent, attempt)
    replaced = aside.with_name(f".tmp-old-{aside.name.removeprefix('.tmp-')}")
    try:
        aside.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        final.rename(replaced)  # a run that went back to an older checkpoint comes by here again
        aside.rename(final)
    sync_folder(final.parent)
    fence.check(final.parent.parent, attempt)
    write_whole(final.parent / LATEST, f"{final.name}\n".encode())
    shutil.rmtree(replaced, ignore_errors=True)
    return {}


def load(engine: "Engine", folder: Path, world: World) -> RunState:
    """Restores weights, optimizer and random states; all ranks call it together.

    A rank beyond those that wrote the checkpoint keeps the random state it started with.
    """
    state, identity = RunState(**read_state(folder)["state"]), read_identity(folder)
    engine.load(folder, identity.zero_stage, identity.world_size)
    if world.rank < identity.world_size:  # dropout is all that would draw from it, and the model has none
        _load_random(folder, world.rank)
    return state


def superseded(folders: list[Path], keep: int, keep_every_steps: int | None) -> list[Path]:
    """Of checkpoints, those that retention gives up: all but the newest `keep` and multiples of `keep_every_steps`."""
    old = sorted(folders, key=step_of)[:-keep]
    return [path for path in old if not (keep_every_steps and step_of(path) % keep_every_steps == 0)]


def delete_superseded(run_dir: Path, keep: int, keep_every_steps: int | None) -> list[Path]:
    """Deletes what retention gives up and returns it; a kill in the middle leaves nothing that looks complete."""
    latest = latest_checkpoint(run_dir)
    gone = [path for path in superseded(complete_checkpoints(run_dir), keep, keep_every_steps) if path != latest]
    for path in gone:
        aside = path.with_name(f".tmp-old-{path.name}")
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    return gone


def stream_model_state(checkpoint_dir: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names of the model's own and fp32 weights of a checkpoint, one at a time, on the host, from any ZeRO stage.

    A tied head need not be among them. Memory does not grow with the model. Raises ValueError when `state.json` is
    missing or broken, or when parts of the state lie where only the ranks that wrote them look.
    """
    from training.engine import SHARDS  # imports DeepSpeed, which takes seconds
    from training.step import PREFIX
    from training.weights import stream_weights

    identity = read_identity(checkpoint_dir)
    for name, weight in stream_weights(checkpoint_dir / SHARDS, identity.zero_stage, identity.world_size):
        yield name.removeprefix(PREFIX), weight


def load_model_state(checkpoint_dir: Path) -> dict[str, torch.Tensor]:
    """All of `stream_model_state` at once."""
    return dict(stream_model_state(checkpoint_dir))


@functools.cache
def code_version() -> str:
    """Version of this code: the package's, with the git commit where it runs from a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return f"{version('shardline')}+{commit}" if commit else version("shardline")


def _save_random(folder: Path, rank: int) -> dict[str, str]:
    states = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    path = folder / _random_name(rank)
    with HashingWriter(path) as file:
        torch.save(states, file)  # type: ignore[arg-type]
    return {path.name: file.digest}


def _load_random(folder: Path, rank: int) -> None:
    states = torch.load(folder / _random_name(rank), weights_only=False)
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _random_name(rank: int) -> str:
    return f"rng-{rank:05d}.pt"
