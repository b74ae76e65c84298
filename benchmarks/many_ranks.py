"""What a rank costs when there are many: places, agreement, order, state, simulated for all ranks in one process.

    python -m benchmarks.many_ranks [--quick] [--check] [--json FILE]

The state is that of a model of 7 billion parameters, described and not held. Times are means over ranks spread evenly.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.table import Row, parser, show
from data_pipeline.reading.loader import counters_of
from data_pipeline.reading.order import SampleOrder
from model.network.tensor_ranks import Division
from training.matrices import Matrix, matrices_of
from training.mesh import AXES, Mesh
from training.plane import children_of, parent_of
from training.state.boxes import Box
from training.state.index import index_of, written_slices
from training.state.layout import Layout, sharded

LAYERS, D_MODEL, D_FF, VOCAB_SIZE = 32, 4096, 11008, 32000
SHARE = 8
"""Samples of a rank in a global batch."""
SAMPLED = 64
"""Ranks that are timed, of all there are."""
KINDS = ("weight", "exp_avg", "exp_avg_sq")
FEW, MANY = 64, 16_384
GROWTH = 0.5
"""Least ratio of a cost at 64 ranks to that at 16,384: a cost that does not grow, within what timing tells."""


def boxes() -> list[Box]:
    """Tensors of the model."""
    found = [Box.whole("embedding.weight", (VOCAB_SIZE, D_MODEL))]
    for layer in range(LAYERS):
        shapes = {"qkv": (3 * D_MODEL, D_MODEL), "output": (D_MODEL, D_MODEL), "norm": (D_MODEL,)}
        shapes |= {"gate_up": (2 * D_FF, D_MODEL), "down": (D_MODEL, D_FF), "norm2": (D_MODEL,)}
        found += [Box.whole(f"blocks.{layer}.{name}.weight", shape) for name, shape in shapes.items()]
    return [*found, Box.whole("norm.weight", (D_MODEL,)), Box.whole("head.weight", (VOCAB_SIZE, D_MODEL))]


def layout_of(stage: int, num_ranks: int) -> Layout:
    """How ZeRO cuts it: matrices and vectors are two groups."""
    groups = [[box for box in boxes() if len(box.tensor) > 1], [box for box in boxes() if len(box.tensor) == 1]]
    if stage == 3:
        lengths = [sum(-(-box.size // num_ranks) for box in group) for group in groups]
    else:
        lengths = [-(-sum(box.size for box in group) // num_ranks) for group in groups]
    return sharded(stage, num_ranks, groups, lengths)


def hidden_matrices() -> dict[str, Division]:
    """Tensors that Muon orthogonalises, and the matrices that each is made of."""
    parts = {"qkv": 3, "output": 1, "gate_up": 2, "down": 1}
    kinds = {box: parts.get(box.name.split(".")[-2], 0) for box in boxes() if box.name.startswith("blocks.")}
    return {box.name: Division(0, (box.tensor[0] // n,) * n) for box, n in kinds.items() if n}


def sent(matrices: list[Matrix], rank: int) -> int:
    """Elements of a rank that go to owners of matrices, or as updates to those who hold pieces of its own."""
    pairs = [(matrix.owner, piece) for matrix in matrices for piece in matrix.pieces]
    return sum(
        piece.length
        for owner, piece in pairs
        if (piece.rank == rank) != (owner == rank) and rank in (piece.rank, owner)
    )


def seconds(action: Callable[[int], object], num_ranks: int) -> float:
    """Seconds of a rank, the least of three rounds over ranks spread evenly."""
    ranks = range(0, num_ranks, max(1, num_ranks // SAMPLED))
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for rank in ranks:
            action(rank)
        best = min(best, (time.perf_counter() - started) / len(ranks))
    return best


def hops(num_ranks: int) -> int:
    """Messages one after another from the last rank to rank 0."""
    count, rank = 0, num_ranks - 1
    while (parent := parent_of(rank)) is not None:
        count, rank = count + 1, parent
    return count


def costs(num_ranks: int) -> dict[str, float]:
    """What one of so many ranks spends."""
    order = SampleOrder(10**9, seed=1)
    batch = SHARE * num_ranks
    cut, even = layout_of(1, num_ranks), layout_of(3, num_ranks)
    index = index_of(cut, KINDS, 1, num_ranks)
    half, hidden = layout_of(1, num_ranks // 2), hidden_matrices()

    def place(rank: int) -> list[range]:
        mesh = Mesh.of(rank, num_ranks, tensor=8)
        return [getattr(mesh, name).members for name in AXES]

    def samples(rank: int) -> np.ndarray:
        return order(counters_of(0, 8, batch, rank, num_ranks))

    def matrices(rank: int) -> list[Matrix]:
        return matrices_of([cut], hidden, Mesh.of(rank, num_ranks))

    exchanged = max(sent(matrices(rank), rank) for rank in range(0, num_ranks, max(1, num_ranks // SAMPLED)))
    return {
        "microseconds to find its place and fellows": seconds(place, num_ranks) * 1e6,
        "microseconds to draw the samples of 8 batches": seconds(samples, num_ranks) * 1e6,
        "connections to agree with the others": float(
            max(len(children_of(r, num_ranks)) for r in range(num_ranks)) + 1
        ),
        "microseconds to find what it writes, ZeRO 1": seconds(
            lambda rank: list(written_slices(cut, rank, num_ranks)), num_ranks
        )
        * 1e6,
        "microseconds to find what it writes, ZeRO 3": seconds(
            lambda rank: list(written_slices(even, rank, num_ranks)), num_ranks
        )
        * 1e6,
        "microseconds to plan what it reads, half the ranks": seconds(
            lambda rank: index.copies(half, rank // 2), num_ranks
        )
        * 1e6,
        "part files it reads, half the ranks": float(len(index.copies(half, 1))),
        "microseconds to find the matrices it has parts of, Muon": seconds(matrices, num_ranks) * 1e6,
        "M elements it sends at most, Muon": exchanged / 1e6,
    }


def grown() -> list[Row]:
    """What grows with the ranks, slowly, and by how much; no goals."""
    few, many = (len(index_of(layout_of(1, ranks), KINDS, 1, ranks).dumps()) for ranks in (FEW, MANY))
    even_few, even_many = (len(index_of(layout_of(3, ranks), KINDS, 1, ranks).dumps()) for ranks in (FEW, MANY))
    return [
        Row("hops of an agreement, up", hops(MANY), f"{FEW} ranks", hops(FEW), None, True),
        Row("bytes of the index, ZeRO 1", many, f"{FEW} ranks", few, None, True),
        Row("bytes of the index, ZeRO 3", even_many, f"{FEW} ranks", even_few, None, True),
    ]


def main(args: argparse.Namespace) -> int:
    """Compares a rank of few with a rank of many."""
    sizes = [1024] if args.quick else [1024, MANY]
    few, rows = costs(FEW), []
    for num_ranks in sizes:
        for what, figure in costs(num_ranks).items():
            rows.append(Row(f"{what}, {num_ranks:,} ranks", figure, f"{FEW} ranks", few[what], GROWTH, True))
    return show("Cost of one rank among many", rows + grown(), args)


if __name__ == "__main__":
    sys.exit(main(parser(__doc__.splitlines()[0]).parse_args()))
