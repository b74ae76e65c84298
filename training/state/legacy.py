"""Where ZeRO keeps each element of the training state, so that another number of ranks, or another stage, can go on.

    checkpoint of R ranks -> saved Layout  \
                                            copies -> the flat vectors of this rank, bit for bit
    live engine of S ranks -> live Layout  /

Weights and moments are the same numbers at any stage and number of ranks; only where they lie differs. ZeRO
flattens the parameters of an optimizer group into vectors, and cuts either each vector (stages 1 and 2,
arXiv 1910.02054) or each parameter (stage 3) into one part per rank. A rank reads nothing but the parts that overlap
its own, through memory maps.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from common.mistakes import Mistake

WEIGHT = "weight"
"""Name of the fp32 weights among the kinds of state; the others are named as the optimizer names them."""

_OLD_STAGES = ("base_optimizer_state", "single_partition_of_fp32_groups")
KEYS = {1: _OLD_STAGES, 2: _OLD_STAGES, 3: ("optimizer_state_dict", "fp32_flat_groups")}
"""Under which keys DeepSpeed saves a rank's optimizer and its vectors of weights, by stage."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter inside a flat vector."""

    name: str
    """Its name in the model."""
    size: int
    """Its elements."""
    gap: int = 0
    """Elements of padding after it, before any cutting."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """Consecutive elements of a flattened parameter, where a rank holds them."""

    name: str
    """The parameter."""
    start: int
    """First element inside the parameter."""
    vector: int
    """Number of the rank's vector that holds them."""
    offset: int
    """Where in that vector."""
    length: int
    """How many, at least 1."""


@dataclasses.dataclass(frozen=True)
class Copy:
    """Elements to copy from a vector of one layout to a vector of another."""

    source: int
    """Number of the vector to read."""
    source_offset: int
    """Where in it."""
    target: int
    """Number of the vector to write."""
    target_offset: int
    """Where in it."""
    length: int
    """How many elements."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How R ranks share a state; every rank has the same number of vectors, of the same lengths."""

    vectors: tuple[tuple[Parameter, ...], ...]
    """Parameters of each vector, in their order."""
    lengths: tuple[int, ...]
    """Elements of one rank's part of each vector, padding included."""
    num_ranks: int
    """R; 1 where nothing is sharded, because then each rank has all."""
    cuts_parameters: bool
    """Whether each parameter is cut into R parts (stage 3), or a vector of whole parameters is (stages 1 and 2)."""

    def slices(self, rank: int) -> Iterator[Slice]:
        """What `rank` holds."""
        for number, (parameters, length) in enumerate(zip(self.vectors, self.lengths, strict=True)):
            cut = self._cut_parameters if self.cuts_parameters else self._cut_vector
            yield from cut(number, parameters, length, rank)

    def _cut_vector(self, number: int, parameters: Sequence[Parameter], length: int, rank: int) -> Iterator[Slice]:
        begin, end, at = rank * length, (rank + 1) * length, 0
        for parameter in parameters:
            first, last = max(at, begin), min(at + parameter.size, end)
            if first < last:
                yield Slice(parameter.name, first - at, number, first - begin, last - first)
            at += parameter.size + parameter.gap

    def _cut_parameters(self, number: int, parameters: Sequence[Parameter], length: int, rank: int) -> Iterator[Slice]:
        at = 0
        for parameter in parameters:
            part = -(-parameter.size // self.num_ranks)
            first, last = rank * part, min((rank + 1) * part, parameter.size)
            if first < last:
                yield Slice(parameter.name, first, number, at, last - first)
            at += part
        assert at == length, f"parts of {at} elements in a vector of {length}"


def copies(source: Layout, target: Layout, rank: int) -> dict[int, list[Copy]]:
    """What fills the vectors of `rank` of `target`, by the rank of `source` that holds it.

    Every element of a parameter is filled once; padding is left out.
    """
    held: dict[str, list[tuple[int, Slice]]] = {}
    for owner in range(source.num_ranks):
        for piece in source.slices(owner):
            held.setdefault(piece.name, []).append((owner, piece))
    plan: dict[int, list[Copy]] = {}
    for mine in target.slices(rank):
        missing = mine.length
        for owner, piece in held.get(mine.name, ()):
            first = max(mine.start, piece.start)
            length = min(mine.start + mine.length, piece.start + piece.length) - first
            if length > 0:
                where = piece.offset + first - piece.start, mine.vector, mine.offset + first - mine.start
                plan.setdefault(owner, []).append(Copy(piece.vector, *where, length))
                missing -= length
        assert missing == 0, f"{missing} elements of {mine.name} are nowhere in the checkpoint"
    return plan


class SavedState:
    """What DeepSpeed saved in a folder, at any stage; opening it reads names and sizes, not tensors."""

    def __init__(self, folder: Path, stage: int, num_ranks: int, parameters: Sequence[Parameter]):
        """`parameters` in the optimizer's order, for stage 0: its files do not hold their names in that order.

        Raises ValueError when parts of the state lie where only the ranks that wrote them look.
        """
        if (folder / "offloaded_tensors").exists():
            raise Mistake(f"{folder}: written with offload to NVMe; go on with the ranks and settings that wrote it")
        self.folder, self.stage = folder, stage
        self.parameters = parameters
        model_file = "mp_rank_00_model_states.pt" if stage < 3 else "zero_pp_rank_0_mp_rank_00_model_states.pt"
        self.facts: dict[str, Any] = _open(folder / model_file)
        assert not self.facts["buffer_names"], "buffers would have to be restored too"
        state = self._optimizer_state(0)
        if not isinstance(state, dict):
            raise Mistake(f"{folder}: written with elastic_checkpoint; go on with the ranks and settings that wrote it")
        self.steps: torch.Tensor = state[0]["step"]
        self.kinds = [WEIGHT, *(kind for kind in state[0] if kind != "step")]
        self.layout = self._layout(state, num_ranks)

    def vectors(self, rank: int) -> dict[str, list[torch.Tensor]]:
        """Flat fp32 vectors of a rank by kind of state, on the host, mapped from its file."""
        state = self._optimizer_state(rank)
        result = {kind: [state[i][kind].flatten() for i in sorted(state)] for kind in self.kinds if kind != WEIGHT}
        if self.stage == 0:
            weights = [self.facts["module"][parameter.name] for parameter in self.parameters]
        else:
            weights = self._shard(rank)[KEYS[self.stage][1]]
        return {WEIGHT: [weight.detach().flatten() for weight in weights], **result}

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
            return whole_parameters(self.parameters)
        gaps = self._shard(0).get("param_alignment_paddings") if self.stage < 3 else None
        lengths = [state[i][self.kinds[-1]].numel() for i in sorted(state)]
        return sharded(self.stage, num_ranks, self.facts["param_shapes"], lengths, gaps)


def sharded(
    stage: int,
    num_ranks: int,
    shapes: Sequence[dict[str, torch.Size]],
    lengths: Sequence[int],
    gaps: Sequence[Sequence[int]] | None,
) -> Layout:
    """Layout of ZeRO 1 to 3 from what DeepSpeed knows of its vectors.

    shapes: of the parameters of each vector, in order, by name; lengths: of a rank's part of each vector;
    gaps: after each parameter of each vector, None for none.
    """
    vectors = []
    for number, named in enumerate(shapes):
        after = gaps[number] if gaps else [0] * len(named)
        parts = zip(named.items(), after, strict=True)
        vectors.append(tuple(Parameter(name, shape.numel(), gap) for (name, shape), gap in parts))
    return Layout(tuple(vectors), tuple(lengths), num_ranks, cuts_parameters=stage == 3)


def whole_parameters(parameters: Sequence[Parameter]) -> Layout:
    """Layout of stage 0: each parameter a vector of its own, on every rank."""
    vectors = tuple((parameter,) for parameter in parameters)
    return Layout(vectors, tuple(parameter.size for parameter in parameters), 1, cuts_parameters=False)


def gather(saved: SavedState, target: Layout, rank: int) -> dict[str, list[torch.Tensor]]:
    """The vectors of `rank` of `target` by kind of state, fp32 on the host, zeros where nothing is saved."""
    filled = {kind: [torch.zeros(length) for length in target.lengths] for kind in saved.kinds}
    for owner, parts in copies(saved.layout, target, rank).items():
        vectors = saved.vectors(owner)
        for kind, into in filled.items():
            for part in parts:
                values = vectors[kind][part.source].narrow(0, part.source_offset, part.length)
                into[part.target].narrow(0, part.target_offset, part.length).copy_(values)
    return filled


def _open(file: Path) -> dict[str, Any]:
    # DeepSpeed's own classes lie in these pickles; our checksums were compared before.
    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)
