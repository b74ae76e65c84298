"""Steps on two ranks that are passed over for what one of them saw."""

import json

import pytest

from tests.training.hold_ranks import WAYS
from tests.training.runs import torchrun


@pytest.fixture(scope="module")
def seen(dataset, tmp_path_factory) -> dict:
    """What happened, by way to train."""
    output = tmp_path_factory.mktemp("hold") / "results.json"
    done = torchrun(2, "-m", "tests.training.hold_ranks", str(dataset), str(output))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.parametrize("name", WAYS)
def test_weights_and_moments_are_as_if_a_bad_step_had_never_been(seen, name):
    assert seen[name]["same"]


@pytest.mark.parametrize("name", WAYS)
def test_each_fault_is_named_with_its_rank(seen, name):
    first, infinite, no_number, gradient = seen[name]["reasons"]
    assert first.startswith("the loss is ") and first == no_number
    assert all(reason.endswith("(rank 1)") for reason in (infinite, no_number))
    assert gradient.startswith("the gradient is not finite though the loss is 5.")
