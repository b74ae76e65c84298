"""Where elements lie, who holds them, and what is copied where, for any two ways of holding a state."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.state.ranks import KINDS, layout_of, value_of, vectors_of
from training.state.boxes import Box, shared
from training.state.index import WEIGHT, Cut, Index, index_of, written_slices
from training.state.layout import Layout, Slice

SHAPES = st.lists(st.lists(st.integers(1, 7), max_size=3).map(tuple), min_size=1, max_size=6).map(
    lambda shapes: {f"p{number}": shape for number, shape in enumerate(shapes)}
)
LAYOUTS = st.tuples(st.integers(0, 3), st.integers(1, 5), SHAPES, st.integers(0, 3), st.integers(1, 3)).map(
    lambda given: layout_of(given[0], given[1], shapes=given[2], gap=given[3], num_vectors=given[4])
)


def parts_of(layout: Layout, num_parts: int) -> list[torch.Tensor]:
    """What each rank writes of the weights."""
    parts = []
    for rank in range(num_parts):
        vectors = vectors_of(layout, 0 if layout.is_replicated else rank)[WEIGHT]
        pieces = [vectors[s.vector][s.offset : s.offset + s.length] for s in written_slices(layout, rank, num_parts)]
        parts.append(torch.cat([torch.empty(0), *pieces]))
    return parts


def writers(layout: Layout) -> int:
    return 3 if layout.is_replicated else layout.num_ranks


@given(LAYOUTS)
def test_the_index_says_where_every_element_lies_in_what_the_ranks_write(layout):
    parts = parts_of(layout, writers(layout))
    index = Index.loads(index_of(layout, KINDS, 7, writers(layout)).dumps())
    assert [index.size(part) for part in range(index.num_parts)] == [len(part) for part in parts]
    for vector in layout.vectors:
        for box in vector:
            found = torch.full((box.size,), -1.0)
            for held, at in index.find(box, 0, box.size):
                assert (found[at : at + held.length] == -1).all()
                found[at : at + held.length] = parts[held.part][held.offset : held.offset + held.length]
            assert torch.equal(found, value_of(WEIGHT, box, torch.arange(box.size)))


@given(SHAPES, st.integers(0, 3), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.integers(1, 5))
def test_copying_gives_any_rank_of_any_layout_what_it_holds(shapes, stage, num_ranks, gap, new_stage, new_ranks):
    old = layout_of(stage, num_ranks, shapes=shapes, gap=gap)
    new = layout_of(new_stage, new_ranks, shapes=dict(reversed(shapes.items())))
    index, parts = index_of(old, KINDS, 7, writers(old)), parts_of(old, writers(old))
    for rank in range(1 if new.is_replicated else new_ranks):
        filled = [torch.full((length,), -1.0) for length in new.lengths]
        for part, copies in index.copies(new, rank).items():
            for copy in copies:
                values = parts[part].narrow(0, copy.source, copy.length)
                into = filled[copy.vector].narrow(0, copy.target, copy.length)
                assert (into == -1).all()
                into.copy_(values)
        assert all(torch.equal(a, b) for a, b in zip(filled, vectors_of(new, rank)[WEIGHT], strict=True))


def test_a_rank_reads_only_from_parts_that_hold_its_own_and_in_one_piece_where_it_can():
    old, new = (
        layout_of(1, 4, shapes={"a": (40,), "b": (40,)}, num_vectors=1),
        layout_of(1, 2, shapes={"a": (40,), "b": (40,)}, num_vectors=1),
    )
    index = index_of(old, KINDS, 7, 4)
    assert [set(index.copies(new, rank)) for rank in (0, 1)] == [{0, 1}, {2, 3}]
    assert all(len(copies) == 1 for rank in range(4) for copies in index.copies(old, rank).values())


def test_a_tensor_that_is_not_in_the_checkpoint_is_never_left_at_zero():
    index = index_of(layout_of(1, 2, shapes={"a": (7,)}), KINDS, 7, 2)
    with pytest.raises(AssertionError, match="5 elements of b are nowhere in the checkpoint"):
        index.copies(layout_of(1, 1, shapes={"a": (7,), "b": (5,)}), 0)


@st.composite
def box_of(draw, shape):
    """A block of a tensor."""
    offset = [draw(st.integers(0, length - 1)) for length in shape]
    extents = [draw(st.integers(1, length - first)) for length, first in zip(shape, offset, strict=True)]
    return Box("w", tuple(shape), tuple(offset), tuple(extents))


def block(box: Box) -> torch.Tensor:
    """Numbers of the tensor's elements that a box holds, flattened."""
    tensor = torch.arange(math.prod(box.tensor)).view(box.tensor)
    for dim, (first, extent) in enumerate(zip(box.offset, box.shape, strict=True)):
        tensor = tensor.narrow(dim, first, extent)
    return tensor.flatten()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3).flatmap(lambda s: st.tuples(box_of(s), box_of(s))))
def test_runs_that_two_blocks_share_are_all_they_share_and_no_more(boxes):
    mine, theirs = map(block, boxes)
    found = torch.full_like(mine, -1)
    for first, other, length in shared(*boxes):
        found[first : first + length] = theirs[other : other + length]
    assert torch.equal(found, torch.where(torch.isin(mine, theirs), mine, -1))


def test_tensors_cut_into_columns_by_some_ranks_are_found_by_ranks_that_cut_them_into_rows():
    columns = [Box("w", (6, 8), (0, 4 * number), (6, 4)) for number in range(2)]
    index = Index((WEIGHT,), 0, tuple(Cut((box,), 2 * i, 2, (0, 10, 24)) for i, box in enumerate(columns)))
    index = Index.loads(index.dumps())
    for number in range(3):
        rows = Box("w", (6, 8), (2 * number, 0), (2, 8))
        found = torch.full((16,), -1)
        for held, at in index.find(rows, 0, 16):
            whole = block(columns[held.part // 2])
            begin = [0, 10][held.part % 2] + held.offset
            found[at : at + held.length] = whole[begin : begin + held.length]
        assert torch.equal(found, block(rows))


@pytest.mark.parametrize("stage", [1, 3])
def test_the_index_grows_with_tensors_plus_ranks_and_not_with_their_product(stage):
    def length(num_tensors: int, num_ranks: int) -> int:
        shapes = {f"layers.{number}.weight": (64, 4096) for number in range(num_tensors)}
        layout = layout_of(stage, num_ranks, shapes=shapes)
        index = index_of(layout, KINDS, 7, num_ranks)
        last = layout.vectors[-1][-1]
        assert sum(held.length for held, _ in index.find(last, 0, last.size)) == last.size
        return len(index.dumps())

    small, ranks, tensors = length(20, 16), length(20, 16_384), length(1000, 16)
    assert length(1000, 16_384) < 1.5 * (ranks + tensors)
    assert (ranks - small) / 16_384 < 32


HARMS = {
    "no json": lambda facts: None,
    "no cuts": lambda facts: facts.pop("cuts"),
    "cuts are numbers": lambda facts: facts.update(cuts=[1]),
    "a tensor is missing elements": lambda facts: facts["cuts"][0]["boxes"][0].__setitem__(1, [99, 3]),
    "a tensor lies there twice": lambda facts: facts["cuts"].append(facts["cuts"][0]),
    "bounds that go back": lambda facts: facts["cuts"][0]["bounds"].__setitem__(1, -1),
    "too few bounds": lambda facts: facts["cuts"][0]["bounds"].pop(1),
    "no weights": lambda facts: facts.update(kinds=["exp_avg"]),
    "a box outside of its tensor": lambda facts: facts["cuts"][0]["boxes"].__setitem__(0, ["e", [4], [3], [2]]),
    "a number that is none": lambda facts: facts.update(updates=float("inf")),
    "a size with a fraction": lambda facts: facts["cuts"][0]["boxes"][0].__setitem__(1, [11.0, 3]),
    "nested without end": lambda facts: None,
    "dims that do not fit": lambda facts: facts["cuts"][0]["boxes"].__setitem__(0, ["e", [4], [3, 0], [2]]),
}


@pytest.mark.parametrize("harm", HARMS)
def test_an_index_that_is_not_whole_is_a_value_error_and_nothing_else(harm):
    facts = json.loads(index_of(layout_of(1, 2), KINDS, 7, 2).dumps())
    HARMS[harm](facts)
    with pytest.raises(ValueError):
        Index.loads({"no json": b"{", "nested without end": b"[" * 9999}.get(harm, json.dumps(facts).encode()))


def test_slices_come_in_the_order_of_the_vector():
    box = Box.whole("a", (10,))
    assert list(layout_of(1, 2, shapes={"a": (10,)}, num_vectors=1).slices(1)) == [Slice(box, 6, 0, 0, 4)]
