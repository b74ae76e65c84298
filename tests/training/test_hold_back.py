"""Steps on two ranks that leave it to the device whether an update happens, as they do on GPUs."""

import json

import pytest

from tests.training.hold_ranks import STAGES
from tests.training.runs import torchrun


@pytest.fixture(scope="module")
def seen(dataset, tmp_path_factory) -> dict:
    """What happened, by stage."""
    output = tmp_path_factory.mktemp("hold") / "results.json"
    done = torchrun(2, "-m", "tests.training.hold_ranks", str(dataset), str(output))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.parametrize("name", STAGES)
def test_they_train_to_the_last_bit_as_those_that_wait(seen, name):
    lines = seen[name]["lines"]
    assert lines["True"] == lines["False"]


@pytest.mark.parametrize("name", STAGES)
def test_an_infinite_loss_changes_no_weight_though_its_gradient_is_sound(seen, name):
    assert seen[name]["unchanged"]
    assert seen[name]["message"].startswith("step 1: the loss is inf (rank 1), no weight was changed")


@pytest.mark.parametrize("name", STAGES)
def test_what_was_held_back_once_goes_on_afterwards(seen, name):
    assert seen[name]["changed later"]
