"""The gradient norm of each step against autograd's own, on the device that is here and, with -m gpu, on a GPU."""

import json

import pytest

from tests.training.plain_norm_rank import STEPS
from tests.training.runs import lone_rank


@pytest.mark.parametrize("gpu", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_norms_in_bf16_are_those_of_plain_gradients(dataset, tmp_path, gpu):
    output = tmp_path / "norms.json"
    lone_rank("tests.training.plain_norm_rank", str(dataset), str(output), gpu=gpu)
    for norms in json.loads(output.read_text()).values():
        assert len(norms) == STEPS
        for ours, plain in norms:
            assert ours == pytest.approx(plain, rel=1e-5)
