"""Places of ranks on the axes."""

import json
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.planes import in_threads
from tests.training.runs import torchrun
from training.mesh import Mesh


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_every_rank_is_met_once_along_each_axis_and_knows_its_fellows(data, context, tensor):
    size = data * context * tensor
    meshes = [Mesh.of(rank, size, tensor=tensor, context=context) for rank in range(size)]
    places = [(mesh.data.rank, mesh.context.rank, mesh.tensor.rank) for mesh in meshes]
    assert sorted(places) == list(product(range(data), range(context), range(tensor)))
    for mesh in meshes:
        for axis in (mesh.data, mesh.context, mesh.tensor):
            assert axis.members[axis.rank] == mesh.rank
            assert all(getattr(meshes[other], axis.name).members == axis.members for other in axis.members)


def test_tensor_ranks_are_neighbours():
    assert Mesh.of(5, 16, tensor=4, context=2).tensor.members == range(4, 8)
    assert Mesh.of(5, 16, tensor=4, context=2).context.members == range(1, 9, 4)
    assert Mesh.of(5, 16, tensor=4, context=2).data.members == range(5, 21, 8)


def test_ranks_that_the_axes_cannot_share_are_refused():
    with pytest.raises(ValueError, match="6 ranks are no multiple of tensor 4 times context 1"):
        Mesh.of(0, 6, tensor=4)


def test_ranks_that_read_the_same_samples_count_once():
    sums = in_threads(8, lambda world: world.sum([10**world.mesh.data.rank]), tensor=2)
    assert sums == [[1111.0]] * 8


def test_tensors_are_summed_along_the_axis_that_is_meant(tmp_path):
    done = torchrun(4, "-m", "tests.training.mesh_ranks", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(4):
        heard = json.loads((tmp_path / f"{rank}.json").read_text())
        assert heard == {"data": [[2, 4][rank % 2]] * 2, "context": [rank, rank], "tensor": [[1, 5][rank // 2]] * 2}
