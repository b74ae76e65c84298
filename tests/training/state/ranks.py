"""Ranks that are threads of one process, an engine that is nothing but vectors, and what tests of the state share."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from tests.training.planes import in_threads
from training.distributed import World
from training.state.boxes import Box
from training.state.choosing import Checkpoint, choose
from training.state.identity import RunIdentity, RunState
from training.state.index import WEIGHT, Index, written_slices
from training.state.layout import Layout, replicated, sharded
from training.state.loading import fill
from training.state.parts import Parts
from training.state.saving import save
from training.state.snapshot import Snapshot

ALONE = World.alone()
IDENTITY = RunIdentity(
    world_size=1,
    zero_stage=1,
    precision="fp32",
    data={"tokens": "d" * 32},
    tokenizer="t" * 32,
    order={"seed": 1, "sequence_length": 32, "objective": {"name": "next_token"}},
    model={"d_model": 32, "num_layers": 2},
)
SHAPES = {"embedding": (11, 3), "matrix": (4, 5), "norm": (7,), "scale": ()}
KINDS = (WEIGHT, "exp_avg", "exp_avg_sq")


def on_ranks(size: int, action: Callable[[World], Any]) -> list[Any]:
    """What `action` returns or raises on each of `size` ranks."""

    def run(world: World) -> Any:
        try:
            return action(world)
        except Exception as error:
            return error

    return in_threads(size, run)


def layout_of(stage: int, num_ranks: int, shapes=None, gap: int = 0, num_vectors: int = 2) -> Layout:
    """A layout as DeepSpeed would make it, the last part of a vector padded."""
    boxes = [Box.whole(name, shape) for name, shape in (shapes or SHAPES).items()]
    if stage == 0:
        return replicated(boxes)
    groups = [group for group in (boxes[i::num_vectors] for i in range(num_vectors)) if group]
    if stage == 3:
        return sharded(3, num_ranks, groups, [sum(-(-box.size // num_ranks) for box in group) for group in groups])
    totals = [sum(box.size for box in group) + gap * (len(group) - 1) for group in groups]
    gaps = [[gap] * (len(group) - 1) + [0] for group in groups]
    return sharded(stage, num_ranks, groups, [-(-total // (2 * num_ranks)) * 2 for total in totals], gaps)


def value_of(kind: str, box: Box, places: torch.Tensor) -> torch.Tensor:
    """What elements of a box are, by kind of state: no two alike in a small model."""
    number = sum(ord(letter) * (i + 1) for i, letter in enumerate(box.name)) % 997
    return (number + 0.001 * places.double() + 5000 * KINDS.index(kind)).float()


def vectors_of(layout: Layout, rank: int, kinds=KINDS) -> dict[str, list[torch.Tensor]]:
    """The vectors that a rank holds; padding is -1."""
    vectors = {kind: [torch.full((length,), -1.0) for length in layout.lengths] for kind in kinds}
    for piece in layout.slices(rank):
        places = torch.arange(piece.start, piece.start + piece.length)
        for kind in kinds:
            vectors[kind][piece.vector][piece.offset : piece.offset + piece.length] = value_of(kind, piece.box, places)
    return vectors


class VectorEngine:
    """The vectors of a rank, without a model; `while_saving` happens when they have been copied."""

    def __init__(self, world: World = ALONE, stage: int = 1, while_saving: Callable[[], None] = lambda: None, **shape):
        self.world, self.while_saving = world, while_saving
        self.layout = layout_of(stage, world.size, **shape)
        self.held = 0 if stage == 0 else world.rank
        self.vectors = vectors_of(self.layout, self.held)
        self.updates = 7

    def snapshot(self) -> Snapshot:
        """As Engine's."""
        self.while_saving()
        slices = list(written_slices(self.layout, self.world.rank, self.world.size))
        pieces = {
            kind: [of[piece.vector].narrow(0, piece.offset, piece.length) for piece in slices]
            for kind, of in self.vectors.items()
        }
        return Snapshot(
            {kind: torch.cat([torch.empty(0), *of]) for kind, of in pieces.items()}, (self.layout,), self.updates
        )

    def load(self, folder: Path, index: Index) -> None:
        """As Engine's, for one that nothing has been read into."""
        self.vectors = {kind: [torch.full((length,), -1.0) for length in self.layout.lengths] for kind in index.kinds}
        self.updates = index.updates
        with Parts(folder, index) as parts:
            fill(parts, self.layout, self.held, self.opened)

    def opened(self, number: int) -> AbstractContextManager[Mapping[str, torch.Tensor]]:
        """A vector of each kind."""
        return nullcontext({kind: of[number] for kind, of in self.vectors.items()})

    @property
    def is_right(self) -> bool:
        """Whether the vectors hold what they should, padding included."""
        expected = vectors_of(self.layout, self.held)
        return self.updates == 7 and all(
            torch.equal(mine, theirs)
            for kind in KINDS
            for mine, theirs in zip(self.vectors[kind], expected[kind], strict=True)
        )


def save_step(run_dir: Path, step: int, world: World = ALONE, engine: VectorEngine | None = None) -> Path:
    """Saves a checkpoint of a step."""
    state = RunState(step, step * 16, step * 500)
    identity = dataclasses.replace(IDENTITY, world_size=world.size)
    return save(engine or VectorEngine(world), run_dir, state, identity, world)  # type: ignore[arg-type]


def chosen(run_dir: Path, world: World = ALONE) -> Checkpoint:
    """The checkpoint that a run would go on from."""
    found = choose(run_dir, world).checkpoint
    assert found is not None
    return found
