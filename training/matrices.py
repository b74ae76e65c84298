"""Which ranks hold what of each hidden matrix, and which of them computes with all of it.

    qkv.weight [(H + 2G) D, M] -> three matrices -> blocks of them, one to a tensor rank -> pieces, as ZeRO cuts vectors

ZeRO 1 and 2 cut a flat vector of many matrices into one part per rank, so most matrices lie whole on one rank, and a
rank shares at most the two at the ends of its part with its neighbours: what a rank sends does not grow with ranks.
Where layers are cut, every matrix is in parts, and its owners take turns.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from model.network.tensor_ranks import Division
from training.mesh import Mesh
from training.state.boxes import Box
from training.state.layout import Layout


@dataclasses.dataclass(frozen=True)
class Piece:
    """Consecutive elements of a block of a matrix, where a rank holds them."""

    rank: int
    """Global rank."""
    vector: int
    """Number of the rank's vector."""
    offset: int
    """Where in it."""
    block: int
    """Number of the block."""
    start: int
    """First element inside the flattened block."""
    length: int
    """How many, at least 1."""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One matrix of the network, whatever weights it lies in a tensor with."""

    name: str
    """Of the tensor."""
    shape: tuple[int, int]
    """Rows and columns."""
    blocks: tuple[tuple[slice, slice], ...]
    """Rows and columns of each block."""
    pieces: tuple[Piece, ...]
    """Every element once, in the same order on every rank."""
    owner: int
    """Global rank that computes with all of it: one that holds most of it."""

    def join(self, values: Iterable[torch.Tensor]) -> torch.Tensor:
        """The matrix, of the values of its pieces in their order."""
        pairs = list(zip(self.pieces, values, strict=True))
        if len(pairs) == 1:
            return pairs[0][1].view(self.shape)
        whole = pairs[0][1].new_empty(self.shape)
        for number, (rows, columns) in enumerate(self.blocks):
            block = torch.cat([of for piece, of in pairs if piece.block == number])
            whole[rows, columns] = block.view(rows.stop - rows.start, columns.stop - columns.start)
        return whole

    def split(self, whole: torch.Tensor) -> Iterator[tuple[Piece, torch.Tensor]]:
        """The pieces, each with its values."""
        flat = [whole[rows, columns].reshape(-1) for rows, columns in self.blocks]
        for piece in self.pieces:
            yield piece, flat[piece.block].narrow(0, piece.start, piece.length)


class _Place(NamedTuple):
    box: Box
    vector: int
    """Number of the vector that it lies in."""
    begin: int
    """Where in all of that it begins."""


def matrices_of(layouts: Sequence[Layout], hidden: Mapping[str, Division], mesh: Mesh) -> list[Matrix]:
    """The matrices that this rank holds something of, in an order that is the same on all ranks.

    `layouts` are those of each tensor rank; `hidden` says by name which tensors, and of which sections they are made.
    """
    tensor, replica = mesh.tensor.rank, mesh.replicas.rank
    layout = layouts[tensor]
    own = {piece.box.name for piece in layout.slices(0 if layout.is_replicated else replica)} & hidden.keys()
    places = [_places(each, own) for each in layouts]
    found = []
    for turn, (name, section) in enumerate(_sections(hidden)):
        if name not in own:
            continue
        matrix = _matrix(name, section, hidden[name].dim, layouts, [each[name] for each in places], mesh, turn)
        if any(piece.rank == mesh.rank for piece in matrix.pieces):
            found.append(matrix)
    return found


def _sections(hidden: Mapping[str, Division]) -> Iterator[tuple[str, tuple[int, int]]]:
    """First index and length of each section of each tensor."""
    for name, division in hidden.items():
        yield from ((name, section) for section in division.parts(0, 1))


def _places(layout: Layout, names: set[str]) -> dict[str, list[_Place]]:
    places: dict[str, list[_Place]] = collections.defaultdict(list)
    for number in range(len(layout.vectors)):
        for box, begin in layout.places(number):
            if box.name in names:
                places[box.name].append(_Place(box, number, begin))
    return places


def _matrix(
    name: str,
    section: tuple[int, int],
    dim: int,
    layouts: Sequence[Layout],
    places: Sequence[Sequence[_Place]],
    mesh: Mesh,
    turn: int,
) -> Matrix:
    first, length = section
    whole = places[0][0].box.tensor
    shape = (whole[0], length) if dim else (length, whole[1])
    origin = (0, first) if dim else (first, 0)
    blocks: list[tuple[slice, slice]] = []
    pieces: list[Piece] = []
    for tensor, (layout, of_rank) in enumerate(zip(layouts, places, strict=True)):
        for box, vector, begin in of_rank:
            rows, columns = (
                slice(max(at, low), min(at + extent, low + size))
                for at, extent, low, size in zip(box.offset, box.shape, origin, shape, strict=True)
            )
            if rows.start >= rows.stop or columns.start >= columns.stop:
                continue
            assert columns.stop - columns.start == box.shape[1], "a section that does not end where a row of it does"
            blocks.append((_from(rows, origin[0]), _from(columns, origin[1])))
            at, start = begin + (rows.start - box.offset[0]) * box.shape[1], 0
            size = (rows.stop - rows.start) * box.shape[1]
            for replica, offset, count in layout.holders(vector, at, size, mesh.replicas.rank):
                pieces.append(Piece(replica * len(layouts) + tensor, vector, offset, len(blocks) - 1, start, count))
                start += count
    return Matrix(name, shape, tuple(blocks), tuple(pieces), _owner(pieces, turn))


def _from(indices: slice, origin: int) -> slice:
    return slice(indices.start - origin, indices.stop - origin)


def _owner(pieces: Sequence[Piece], turn: int) -> int:
    """A rank that holds most; of several that do, each in turn."""
    held: collections.Counter[int] = collections.Counter()
    for piece in pieces:
        held[piece.rank] += piece.length
    most = max(held.values())
    ranks = sorted(rank for rank, count in held.items() if count == most)
    return ranks[turn % len(ranks)]
