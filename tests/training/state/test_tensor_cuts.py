"""The state of layers that ranks share: written once whoever holds it, read by any other way to cut it."""

import itertools
import json

import pytest
import torch

from model.network.layers import Constant, Draw
from model.network.tensor_ranks import Division
from tests.training.state.ranks import KINDS, value_of
from training.first_weights import fill_from
from training.state.boxes import Box
from training.state.index import Index, index_of, written_slices
from training.state.layout import Layout, Share, replicated, sharded

SHAPES = {
    "embedding": ((12, 6), Division(0, (12,))),
    "qkv": ((20, 6), Division(0, (12, 4, 4))),
    "qkv_bias": ((20,), Division(0, (12, 4, 4))),
    "norm": ((7,), None),
    "output": ((6, 12), Division(1, (12,))),
    "table": ((5, 4), Division(1, (4,))),
    "output_bias": ((6,), None),
    "gate_up": ((16, 6), Division(0, (8, 8))),
}
WAYS = [
    (stage, data, tensor) for stage in range(4) for data, tensor in ((1, 1), (2, 1), (1, 2), (2, 2), (3, 4), (1, 4))
]


def held(tensor_rank: int, tensor: int) -> dict[str, Share]:
    """What a tensor rank holds of each parameter."""
    return {
        name: Box.of_rank(name, shape, cut, tensor_rank, tensor) if cut and tensor > 1 else (Box.whole(name, shape),)
        for name, (shape, cut) in SHAPES.items()
    }


def layouts_of(stage: int, data: int, tensor: int, gap: int = 0, num_kinds=(3, 3)) -> list[Layout]:
    """As DeepSpeed makes them, in two vectors, one for each tensor rank."""
    layouts = []
    for rank in range(tensor):
        shares = held(rank, tensor)
        copies = [name for name, share in shares.items() if rank and share[0].is_whole]
        listed = list(shares.values())
        vectors = [listed[0::2], listed[1::2]]
        if stage == 0:
            kinds = [count for count, vector in zip(num_kinds, vectors, strict=True) for _ in vector]
            layouts.append(replicated([*vectors[0], *vectors[1]], copies, kinds))
            continue
        sizes = [[sum(box.size for box in share) for share in vector] for vector in vectors]
        if stage == 3:
            lengths = [sum(-(-size // data) for size in vector) for vector in sizes]
            layouts.append(sharded(3, data, vectors, lengths, None, copies))
        else:
            gaps = [[gap] * (len(vector) - 1) + [0] for vector in vectors]
            totals = [sum(vector) + gap * (len(vector) - 1) for vector in sizes]
            lengths = [-(-total // (2 * data)) * 2 for total in totals]
            layouts.append(sharded(stage, data, vectors, lengths, gaps, copies, num_kinds))
    return layouts


def values(kind: str, box: Box, start: int, length: int) -> torch.Tensor:
    """What elements of a box are: each element of the whole tensor is known by its place there."""
    places = torch.arange(Box.whole(box.name, box.tensor).size).view(box.tensor)
    for dim, (first, extent) in enumerate(zip(box.offset, box.shape, strict=True)):
        places = places.narrow(dim, first, extent)
    return value_of(kind, box, places.reshape(-1)[start : start + length])


def vectors_of(layout: Layout, rank: int) -> dict[str, list[torch.Tensor]]:
    vectors = {kind: [torch.full((length,), -1.0) for length in layout.lengths] for kind in KINDS}
    for piece in layout.slices(rank):
        for kind in KINDS:
            into = vectors[kind][piece.vector].narrow(0, piece.offset, piece.length)
            into.copy_(values(kind, piece.box, piece.start, piece.length))
    return vectors


def parts_of(layouts: list[Layout], data: int) -> list[dict[str, torch.Tensor]]:
    """What each rank writes, tensor ranks one behind another."""
    parts = []
    for layout, rank in itertools.product(layouts, range(data)):
        vectors = vectors_of(layout, 0 if layout.is_replicated else rank)
        slices = list(written_slices(layout, rank, data))
        parts.append(
            {
                kind: torch.cat(
                    [
                        torch.empty(0),
                        *(
                            of[s.vector].narrow(0, s.offset, s.length)
                            for s in slices
                            if layout.num_kinds is None or KINDS.index(kind) < layout.num_kinds[s.vector]
                        ),
                    ]
                )
                for kind, of in vectors.items()
            }
        )
    return parts


@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize(("stage", "data", "tensor"), WAYS)
def test_the_index_finds_every_element_where_it_was_written(stage, data, tensor, gap):
    first, *others = layouts_of(stage, data, tensor, gap)
    index = Index.loads(index_of(first, KINDS, 7, data, *others).dumps())
    parts = parts_of([first, *others], data)
    assert index.num_parts == len(parts) == data * tensor
    assert [index.size(part) for part in range(len(parts))] == [len(part["weight"]) for part in parts]
    assert sum(len(part["weight"]) for part in parts) == sum(Box.whole(n, s).size for n, (s, _) in SHAPES.items())
    for name, (shape, _) in SHAPES.items():
        whole = Box.whole(name, shape)
        found = torch.full((whole.size,), -1.0)
        for piece, at in index.find(whole, 0, whole.size):
            found[at : at + piece.length] = parts[piece.part]["weight"][piece.offset : piece.offset + piece.length]
        assert torch.equal(found, values("weight", whole, 0, whole.size)), name


@pytest.mark.parametrize(("old", "new"), itertools.product(WAYS[::2], WAYS[1::2]))
def test_any_way_to_cut_takes_over_from_any_other(old, new):
    first, *others = layouts_of(*old)
    index = Index.loads(index_of(first, KINDS, 7, old[1], *others).dumps())
    parts = parts_of([first, *others], old[1])
    for layout in layouts_of(*new, gap=2):
        for rank in range(1 if layout.is_replicated else new[1]):
            expected = vectors_of(layout, rank)
            found = {kind: [torch.full((length,), -1.0) for length in layout.lengths] for kind in KINDS}
            for part, copies in index.copies(layout, rank).items():
                for kind, copy in itertools.product(KINDS, copies):
                    source = parts[part][kind][copy.source : copy.source + copy.length]
                    found[kind][copy.vector][copy.target : copy.target + copy.length] = source
            for kind in KINDS:
                assert all(map(torch.equal, found[kind], expected[kind])), (rank, kind)


CUT_VECTORS = [way for way in WAYS if way[0] < 3]


@pytest.mark.parametrize(("old", "new"), itertools.product(CUT_VECTORS[::2], CUT_VECTORS[1::2]))
def test_parameters_with_one_moment_lie_beside_those_with_two(old, new):
    first, *others = layouts_of(*old, num_kinds=(3, 2))
    index = Index.loads(index_of(first, KINDS, 7, old[1], *others).dumps())
    few = list(SHAPES)[1::2]
    assert list(index.names("exp_avg")) == list(SHAPES)[0::2] + few
    assert list(index.names("exp_avg_sq")) == list(SHAPES)[0::2]
    parts = parts_of([first, *others], old[1])
    assert [index.size(part, "exp_avg_sq") for part in range(len(parts))] == [len(p["exp_avg_sq"]) for p in parts]
    assert all(len(part["exp_avg_sq"]) < len(part["exp_avg"]) == len(part["weight"]) for part in parts)
    for layout in layouts_of(*new, gap=2, num_kinds=(3, 2)):
        for rank in range(1 if layout.is_replicated else new[1]):
            expected = vectors_of(layout, rank)
            for part, copies in index.copies(layout, rank).items():
                for kind, copy in itertools.product(KINDS, copies):
                    if layout.num_kinds and KINDS.index(kind) < layout.num_kinds[copy.vector]:
                        source = parts[part][kind][copy.source : copy.source + copy.length]
                        into = expected[kind][copy.vector][copy.target : copy.target + copy.length]
                        assert torch.equal(source, into)
                        into.fill_(-1)
            for kind in KINDS:
                kept = [
                    v
                    for v, count in zip(expected[kind], layout.num_kinds or (), strict=True)
                    if KINDS.index(kind) < count
                ]
                assert all((vector == -1).all() for vector in kept), "every element came once"


def test_a_cut_with_more_kinds_than_the_one_before_it_is_damage():
    (layout,) = layouts_of(1, 2, 1, num_kinds=(3, 2))
    facts = json.loads(index_of(layout, KINDS, 7, 2).dumps())
    for cut, kinds in zip(facts["cuts"], (2, 3), strict=True):
        cut["kinds"] = kinds
    with pytest.raises(ValueError, match="more kinds of state than the one before"):
        Index.loads(json.dumps(facts).encode())
    facts["cuts"][1]["kinds"] = 4
    with pytest.raises(ValueError, match="4 of 3 kinds"):
        Index.loads(json.dumps(facts).encode())


@pytest.mark.parametrize("groups", [[0, 8], [9], [3, 3], [-1, 9]])
def test_groups_that_do_not_fit_the_boxes_are_damage(groups):
    first, *others = layouts_of(3, 2, 2)
    text = index_of(first, KINDS, 7, 2, *others).dumps().decode()
    assert '"groups"' in text
    facts = json.loads(text)
    facts["cuts"][0]["groups"] = groups
    with pytest.raises(ValueError, match=r"groups that do not take in every box|boxes of"):
        Index.loads(json.dumps(facts).encode())


@pytest.mark.parametrize("block", [16, 48, 1 << 20])
@pytest.mark.parametrize("name", SHAPES)
def test_a_part_of_first_weights_is_that_of_the_whole(name, block, monkeypatch):
    monkeypatch.setattr("model.network.layers.BLOCK", block)
    shape, cut = SHAPES[name]
    for first in (Draw(shape, 1.0, 5, name), Constant(shape, 2.0)):
        whole = torch.empty(shape)
        first.fill(whole.view(-1))
        fill = fill_from(lambda _, start, stop, first=first: first.blocks(start, stop))
        for rank in range(2):
            for box in Box.of_rank(name, shape, cut, rank, 2) if cut else (Box.whole(name, shape),):
                expected = whole
                for dim, (at, extent) in enumerate(zip(box.offset, box.shape, strict=True)):
                    expected = expected.narrow(dim, at, extent)
                for start, stop in {(0, box.size), (box.size // 3, box.size), (1, box.size // 2 + 1)}:
                    out = torch.full((stop - start,), torch.nan)
                    fill(box, out, start)
                    assert torch.equal(out, expected.reshape(-1)[start:stop]), (rank, start, stop)
