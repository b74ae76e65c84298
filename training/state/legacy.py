"""Checkpoints of before this format: DeepSpeed's pickles, converted once by somebody who trusts them.

    step-00000020/deepspeed/*.pt -> where ZeRO put each element -> parts, index, state, checksums -> step-00000020/
                                                                 the old folder stays, under another name

Reading a pickle runs whatever code lies in it. Files are mapped, so memory is that of one rank's part at most.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from common.files import checksum, discard, read_file
from common.json_lines import parse_json
from common.mistakes import Mistake
from training import fence
from training.lock import refuse_second_writer
from training.state.boxes import Box
from training.state.folder import (
    KEPT,
    checkpoints_dir,
    complete_checkpoints,
    half_upgraded,
    without_readers,
)
from training.state.identity import STATE, RunIdentity, RunState, dump_state
from training.state.index import WEIGHT, index_of, written_slices
from training.state.layout import Layout, replicated, sharded
from training.state.parts import part_name, write_part
from training.state.saving import make_room, put_in_place, seal
from training.state.sums import CHECKSUMS

SHARDS = "deepspeed"
"""Folder inside an old checkpoint that holds DeepSpeed's files."""
PREFIX = "model."
"""What old checkpoints put in front of the names of weights."""
_OLD_STAGES = ("base_optimizer_state", "single_partition_of_fp32_groups")
KEYS = {1: _OLD_STAGES, 2: _OLD_STAGES, 3: ("optimizer_state_dict", "fp32_flat_groups")}
"""Under which keys DeepSpeed saves a rank's optimizer and its vectors of weights, by stage."""


def old_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints of a run that hold DeepSpeed's pickles, oldest first."""
    return [folder for folder in complete_checkpoints(run_dir) if (folder / SHARDS).is_dir()]


def undo_half(run_dir: Path) -> None:
    """Gives the checkpoint its name back whose upgrade was killed between two renames."""
    if kept := half_upgraded(run_dir):
        kept.rename(kept.with_name(kept.name.removeprefix(f"{KEPT}-")))


def upgrade(folder: Path) -> Path:
    """Converts an old checkpoint in its place and returns where the old one is kept.

    Runs the code that lies in it. Raises ValueError when it is damaged, or holds state that lies elsewhere.
    """
    run_dir = folder.parent.parent
    refuse_second_writer(run_dir)
    state, identity = _read_state(folder)
    _refuse_damaged(folder)
    attempt = fence.read(run_dir)
    aside = make_room(run_dir, state.step, attempt)
    try:
        _convert(folder, aside, state, identity)
        kept = folder.with_name(f"{KEPT}-{folder.name}")
        with without_readers(run_dir) as free:
            if not free:
                raise Mistake(f"{run_dir}: somebody is reading a checkpoint of it; wait for that to end")
            folder.rename(kept)
        put_in_place(aside, folder, attempt)
    finally:
        discard(aside)
    return kept


def _convert(folder: Path, aside: Path, state: RunState, identity: RunIdentity) -> None:
    saved = SavedState(folder / SHARDS, identity.zero_stage, identity.world_size)
    digests = {}
    for part in range(saved.num_parts):
        slices, vectors = list(written_slices(saved.layout, part, saved.num_parts)), saved.vectors(part)
        pieces = {k: [of[s.vector].narrow(0, s.offset, s.length) for s in slices] for k, of in vectors.items()}
        digests[part_name(part)] = write_part(aside / part_name(part), pieces)
    index = index_of(saved.layout, saved.kinds, saved.updates, saved.num_parts)
    seal(aside, digests, index, dump_state(state, identity))


def _read_state(folder: Path) -> tuple[RunState, RunIdentity]:
    try:
        facts = parse_json(read_file(folder / STATE))
        return RunState(**facts["state"]), RunIdentity(**facts["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise Mistake(f"{folder / STATE}: cannot be read ({error}); restore it from a copy") from None


def _refuse_damaged(folder: Path) -> None:
    try:
        digests = dict(parse_json(read_file(folder / CHECKSUMS)))
    except (ValueError, TypeError) as error:
        raise Mistake(f"{folder / CHECKSUMS}: cannot be read ({error}); restore it from a copy") from None
    unsummed = {str(path.relative_to(folder)) for path in folder.rglob("*.pt")} - digests.keys()
    for name in sorted(unsummed):
        raise Mistake(f"{folder / name}: {CHECKSUMS} does not list it; move it away if it does not belong there")
    for name, digest in sorted(digests.items()):
        if not (folder / name).is_file() or checksum(folder / name) != digest:
            raise Mistake(f"{folder / name}: it is not what was written; restore it from a copy")


class SavedState:
    """What DeepSpeed saved in a folder, at any stage."""

    def __init__(self, folder: Path, stage: int, num_ranks: int):
        """Raises ValueError when parts of the state lie where only the ranks that wrote them look."""
        if (folder / "offloaded_tensors").exists():
            raise Mistake(f"{folder}: written with offload to NVMe, which cannot be converted")
        self.folder, self.stage = folder, stage
        self.num_parts = num_ranks if stage else 1
        model_file = "mp_rank_00_model_states.pt" if stage < 3 else "zero_pp_rank_0_mp_rank_00_model_states.pt"
        self.facts: dict[str, Any] = _open(folder / model_file)
        state = self._optimizer_state(0)
        if not isinstance(state, dict):
            raise Mistake(f"{folder}: written with elastic_checkpoint, which cannot be converted")
        self.updates = int(state[0]["step"])
        self.kinds = [WEIGHT, *(kind for kind in state[0] if kind != "step")]
        self.layout = self._layout(state, num_ranks)

    def vectors(self, rank: int) -> dict[str, list[torch.Tensor]]:
        """Flat fp32 vectors of a rank by kind of state, on the host, mapped from its file."""
        state = self._optimizer_state(rank)
        moments = {kind: [state[i][kind].flatten() for i in sorted(state)] for kind in self.kinds if kind != WEIGHT}
        weights = self._shard(rank)[KEYS[self.stage][1]] if self.stage else [weight for _, weight in self._module()]
        return {WEIGHT: [weight.detach().flatten() for weight in weights], **moments}

    def _module(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights of stage 0 in the optimizer's order: first those that decay; a tied one counts once."""
        seen: set[int] = set()
        own = []
        for name, weight in self.facts["module"].items():
            if weight.untyped_storage().data_ptr() not in seen:
                seen.add(weight.untyped_storage().data_ptr())
                own.append((name, weight))
        yield from sorted(own, key=lambda named: named[1].ndim < 2)

    def _optimizer_state(self, rank: int) -> Any:
        if self.stage == 0:
            return self.facts["optimizer"]["state"]
        saved = self._shard(rank)[KEYS[self.stage][0]]
        return saved["state"] if isinstance(saved, dict) else saved

    def _shard(self, rank: int) -> dict[str, Any]:
        # Stage 1 in bf16 puts "bf16_" in front.
        (file,) = self.folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        return _open(file)["optimizer_state_dict"]

    def _layout(self, state: dict[int, Any], num_ranks: int) -> Layout:
        if self.stage == 0:
            layout = replicated([_box(name, weight.shape) for name, weight in self._module()])
            assert layout.lengths == tuple(state[i][self.kinds[-1]].numel() for i in sorted(state)), "another order"
            return layout
        gaps = self._shard(0).get("param_alignment_paddings") if self.stage < 3 else None
        boxes = [[_box(name, shape) for name, shape in group.items()] for group in self.facts["param_shapes"]]
        return sharded(self.stage, num_ranks, boxes, [state[i][self.kinds[-1]].numel() for i in sorted(state)], gaps)


def _box(name: str, shape: Sequence[int]) -> Box:
    return Box.whole(name.removeprefix(PREFIX), shape)


def _open(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)


def kept_checkpoints(run_dir: Path) -> list[Path]:
    """Old checkpoints that were converted and are kept, for the user to delete."""
    return sorted(checkpoints_dir(run_dir).glob(f"{KEPT}-*"))
