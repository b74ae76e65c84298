"""Going back over spikes that skipping did not mend, and on beyond their samples (PaLM, arXiv 2204.02311, section 5).

    too many in a row -> jumps.json, whole and synced -> what was saved from the first of them on is given up
    -> resume, as after any other end -> samples beyond the last of them

The file decides: it is written before anything is undone, and all that follows is done again by every start. So a kill
at any moment gives the same run.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.files import read_file, write_whole
from common.json_lines import Form, parse_json
from common.mistakes import Mistake
from data_pipeline.reading.mix import from_json
from training import fence
from training.state.folder import (
    LATEST,
    complete_checkpoints,
    discard,
    give_up,
    latest_checkpoint,
    point_to,
    step_of,
    without_readers,
)
from training.state.identity import OtherFormat, RunState, read_saved

FILE = "jumps.json"
"""In a run's folder."""
FORM = Form({"before": int, "samples": int, "why": str}, {"mix": list})
MOST_SAMPLES = 2**62
"""More than any order of samples has."""


class RolledBack(Exception):
    """A jump is decided and noted: the run goes on by resuming."""


@dataclasses.dataclass(frozen=True)
class Jump:
    """One time that a run goes back."""

    before: int
    """What was saved at this step or later, by then, is given up."""
    samples: int
    """Counter of the sample that training goes on with."""
    why: str
    """What was seen, in words."""
    mix: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Which mix of sources the run had from which sample on, so that what was left out counts as drawn."""


def read_jumps(run_dir: Path) -> list[Jump]:
    """Jumps of a run, oldest first."""
    path = run_dir / FILE
    if not path.exists():
        return []
    try:
        records = parse_json(read_file(path))
        fault = next(filter(None, map(FORM.fault, records)), "")
        jumps = [] if fault else [Jump(**record) for record in records]
        for jump in jumps:
            from_json(jump.mix)
    except (ValueError, TypeError, KeyError) as error:
        raise Mistake(f"{path}: not a list of jumps ({error}); restore it from a copy") from None
    if not fault and any(jump.before < 1 or not 0 <= jump.samples < MOST_SAMPLES for jump in jumps):
        fault = "one of its numbers is out of range"
    if fault:
        raise Mistake(f"{path}: not a list of jumps, for {fault}; restore it from a copy")
    return jumps


def reach(run_dir: Path, first: int, num_jumps: int) -> int:
    """From which step on to give checkpoints up, if the first spike is at step `first` after so many jumps.

    A checkpoint that was gone back to before and led to spikes again is given up too, while there is an older one.
    """
    saved = [folder for folder in complete_checkpoints(run_dir) if step_of(folder) < first]
    if len(saved) > 1 and read_saved(saved[-1]).state.guards.jumps < num_jumps:
        return step_of(saved[-1])
    return first


def note_jump(run_dir: Path, jump: Jump, attempt: str) -> None:
    """Decides a jump, for good."""
    fence.check(run_dir, attempt)
    jumps = [*read_jumps(run_dir), jump]
    write_whole(run_dir / FILE, json.dumps(list(map(dataclasses.asdict, jumps)), indent=1).encode())


def is_given_up(step: int, seen: int, jumps: Sequence[Jump]) -> bool:
    """Whether a later jump went back over a checkpoint of this step, which was saved after the first `seen` jumps."""
    return any(step >= jump.before for jump in jumps[seen:])


def jumped(state: RunState, jumps: Sequence[Jump]) -> RunState:
    """Where a run stands that resumes from `state`: beyond the samples of jumps that it does not know yet."""
    later = jumps[state.guards.jumps :]
    guards = dataclasses.replace(state.guards, jumps=len(jumps))
    samples = max([state.samples_consumed, *(jump.samples for jump in later)])
    mix = from_json(later[-1].mix) if later and later[-1].mix else state.mix
    return dataclasses.replace(state, samples_consumed=samples, guards=guards, mix=mix)


def settle(run_dir: Path, attempt: str) -> list[Jump]:
    """Moves checkpoints that were given up out of the way and returns the run's jumps; for rank 0, at each start."""
    jumps = read_jumps(run_dir)
    gone = [folder for folder in complete_checkpoints(run_dir) if _is_gone(folder, jumps)]
    if not gone:
        return jumps
    fence.check(run_dir, attempt)
    kept = [folder for folder in complete_checkpoints(run_dir) if folder not in gone]
    if latest_checkpoint(run_dir) in gone:
        if kept:
            point_to(kept[-1])
        else:
            (gone[0].parent / LATEST).unlink(missing_ok=True)
    aside = [give_up(folder) for folder in gone]
    with without_readers(run_dir) as free:
        for folder in aside if free else ():
            discard(folder)
    return jumps


def _is_gone(folder: Path, jumps: Sequence[Jump]) -> bool:
    if not is_given_up(step_of(folder), 0, jumps):
        return False
    try:
        return is_given_up(step_of(folder), read_saved(folder).state.guards.jumps, jumps)
    except OtherFormat:
        raise
    except Mistake:
        return False  # damaged: whoever looks for a checkpoint to go on from tells of it
