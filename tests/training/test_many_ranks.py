"""1,024 and 16,384 ranks in one process: everything has one owner, and the cost of a rank does not grow."""

import itertools

import numpy as np
import pytest

from data_pipeline.reading.loader import counters_of
from data_pipeline.reading.order import SampleOrder
from model.network.tensor_ranks import Division
from tests.training.runs import tiny_config
from training.deepspeed_config import accumulation_steps
from training.mesh import AXES, Mesh
from training.plane import FAN_OUT, children_of, parent_of
from training.state.boxes import Box
from training.state.index import Index, index_of, written_slices
from training.state.layout import Layout, replicated, sharded

MANY = pytest.mark.parametrize("num_ranks", [1024, 16_384])
SHAPES = [(1000, 256), (256,), (768, 256), (256, 256), (1024, 256), (256, 512), (256,), (1000, 256), (3, 7), (1,)]
KINDS = ("weight", "exp_avg", "exp_avg_sq")


def boxes_of_a_model() -> list[Box]:
    return [Box.whole(f"tensor{number}", shape) for number, shape in enumerate(SHAPES)]


def layout_of(stage: int, num_ranks: int) -> Layout:
    """The layout that ZeRO gives the model: matrices and vectors in two groups, padded to a multiple of the ranks."""
    boxes = boxes_of_a_model()
    if stage == 0:
        return replicated(boxes)
    groups = [[box for box in boxes if len(box.tensor) >= 2], [box for box in boxes if len(box.tensor) < 2]]
    if stage == 3:
        lengths = [sum(-(-box.size // num_ranks) for box in group) for group in groups]
    else:
        lengths = [-(-sum(box.size for box in group) // num_ranks) for group in groups]
    return sharded(stage, num_ranks, groups, lengths)


@MANY
def test_every_place_on_the_axes_is_taken_once(num_ranks):
    meshes = [Mesh.of(rank, num_ranks, tensor=8, context=2) for rank in range(num_ranks)]
    places = {tuple(getattr(mesh, name).rank for name in AXES) for mesh in meshes}
    assert len(places) == num_ranks
    for mesh in meshes[:: num_ranks // 64]:
        for axis in (mesh.data, mesh.context, mesh.tensor):
            fellows = [getattr(meshes[member], axis.name) for member in axis.members]
            assert [fellow.rank for fellow in fellows] == list(range(axis.size))
            assert all(fellow.members == axis.members for fellow in fellows)


@MANY
def test_agreement_reaches_all_with_few_connections_each(num_ranks):
    parents = [parent_of(rank) for rank in range(1, num_ranks)]
    assert all(rank in children_of(parent, num_ranks) for rank, parent in enumerate(parents, 1))
    assert max(len(children_of(rank, num_ranks)) for rank in range(num_ranks)) == FAN_OUT


@MANY
def test_every_sample_is_read_once_in_an_epoch(num_ranks):
    share, num_batches = 2, 3
    global_batch = share * num_ranks
    order = SampleOrder(global_batch * num_batches, seed=7)
    counters = np.stack([counters_of(0, num_batches, global_batch, rank, num_ranks) for rank in range(num_ranks)])
    assert counters.shape == (num_ranks, share * num_batches), "the work of a rank does not depend on the others"
    seen = order(counters.ravel())
    assert np.array_equal(np.sort(seen), np.arange(global_batch * num_batches))
    batch = np.sort(counters.reshape(num_ranks, num_batches, share)[:, 1].ravel())
    assert np.array_equal(batch, np.arange(global_batch, 2 * global_batch)), "global batches are the same for any ranks"


@MANY
def test_micro_batches_of_all_ranks_make_up_the_global_batch(num_ranks):
    config = tiny_config("data", training={"global_batch_size": 12 * num_ranks, "micro_batch_size": 4})
    assert accumulation_steps(config, num_ranks) == 3


@MANY
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_element_of_the_state_is_written_by_one_rank(num_ranks, stage):
    layout = layout_of(stage, num_ranks)
    written: dict[str, list[tuple[int, int]]] = {box.name: [] for box in boxes_of_a_model()}
    for rank in range(num_ranks):
        for piece in written_slices(layout, rank, num_ranks):
            written[piece.box.name].append((piece.start, piece.length))
    for box in boxes_of_a_model():
        pieces = sorted(written[box.name])
        ends = [start + length for start, length in pieces]
        assert [start for start, _ in pieces] == [0, *ends[:-1]], box.name
        assert ends[-1] == box.size, box.name


@MANY
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_index_says_of_every_part_what_its_rank_wrote(num_ranks, stage):
    layout = layout_of(stage, num_ranks)
    index = Index.loads(index_of(layout, KINDS, 10, num_ranks).dumps())
    total = sum(box.size for box in boxes_of_a_model())
    assert sum(index.size(part) for part in range(num_ranks)) == total
    for rank in range(0, num_ranks, num_ranks // 32):
        assert index.size(rank) == sum(piece.length for piece in written_slices(layout, rank, num_ranks))


@MANY
@pytest.mark.parametrize(("stage", "later_stage"), itertools.product([1, 3], [1, 3]))
def test_a_rank_that_resumes_reads_little_more_than_its_own(num_ranks, stage, later_stage):
    index = index_of(layout_of(stage, num_ranks), KINDS, 10, num_ranks)
    later_ranks = num_ranks // 2
    later = layout_of(later_stage, later_ranks)
    for rank in range(0, later_ranks, later_ranks // 16):
        own = sum(piece.length for piece in later.slices(rank))
        plan = index.copies(later, rank)
        assert sum(copy.length for copies in plan.values() for copy in copies) == own
        # a cut by sequence against a cut by tensors overlaps where a tensor is cut into many parts
        assert len(plan) <= (4 if stage == later_stage else 3 * len(SHAPES) + own)


def test_the_index_grows_with_tensors_plus_ranks_not_with_their_product():
    few, many = (len(index_of(layout_of(3, ranks), KINDS, 10, ranks).dumps()) for ranks in (64, 16_384))
    assert many < few + 64
    few, many = (len(index_of(layout_of(1, ranks), KINDS, 10, ranks).dumps()) for ranks in (64, 16_384))
    assert many < few + 16_384 * 2 * 10


@MANY
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_of_layers_that_eight_ranks_share_every_element_is_written_by_one_rank(num_ranks, stage):
    data, tensor = num_ranks // 8, 8
    cut = {f"tensor{number}": Division(0, shape[:1]) for number, shape in enumerate(SHAPES) if shape[0] % 8 == 0}
    layouts = []
    for rank in range(tensor):
        shares = [
            Box.of_rank(box.name, box.tensor, cut[box.name], rank, tensor) if box.name in cut else (box,)
            for box in boxes_of_a_model()
        ]
        copies = [share[0].name for share in shares if rank and share[0].is_whole]
        sizes = [sum(box.size for box in share) for share in shares]
        if stage == 0:
            layouts.append(replicated(shares, copies))
        else:
            length = -(-sum(sizes) // data) if stage == 1 else sum(-(-size // data) for size in sizes)
            layouts.append(sharded(stage, data, [shares], [length], None, copies))
    first, *others = layouts
    index = Index.loads(index_of(first, KINDS, 10, data, *others).dumps())
    written = {box.name: 0 for box in boxes_of_a_model()}
    for part in range(num_ranks):
        pieces = list(written_slices(layouts[part // data], part % data, data))
        assert index.size(part) == sum(piece.length for piece in pieces)
        for piece in pieces:
            written[piece.box.name] += piece.length
    assert written == {box.name: box.size for box in boxes_of_a_model()}
